"""First phase of the tiny SAM 2: the image model, from scratch, on box and point prompts.

Whole frames show the gripper, as close frames do; zoomed windows show objects, as region proposals do. The encoder is
frozen in the second phase, where a memory must recognise objects. So a second head, which is thrown away afterwards,
learns here to name the object at each pixel: it makes the features tell objects apart.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from transformers import Sam2Model

from pixel160k.files import new_folder
from simulation.environment import GRIPPER, ROBOT_ARM
from simulation.libero import category_of
from tiny_models.frames import (
    SIZE,
    WHOLE_FRAME,
    Frames,
    augment,
    box_around,
    categories,
    cut_window,
    draw_window,
    normalize,
)
from tiny_models.segmenter_model import CHANNELS, mask_iou, mask_loss, new_image_model, tie_mask_tokens, upsample
from tiny_models.training import Schedule, parameter_count

IMAGES, PROMPTS = 4, 6  # per batch, per image
LOSS_SIZE = SIZE // 2
SMALLEST = 20  # pixels; a smaller mask gets no prompt


@dataclass(frozen=True)
class Batch:
    """Images with PROMPTS prompts each."""

    pixels: torch.Tensor  # float (images, 3, 256, 256), normalized
    masks: torch.Tensor  # float (images, prompts, 256, 256)
    boxes: torch.Tensor  # (images, prompts, 4), left, top, right, bottom in pixels
    points: torch.Tensor  # (images, prompts, 1, 2), x, y in pixels
    classes: torch.Tensor  # int (images, 256, 256): the category of every pixel


class SegmenterExamples:
    """Draws training batches from the frames of a split."""

    def __init__(self, frames: Frames, random: np.random.Generator) -> None:
        """Draw from frames; all kinds of episodes come equally often."""
        self.frames, self.random = frames, random
        known = categories(frames.names)
        self.class_of_label = np.array([0] + [known.index(category_of(name)) + 1 for name in frames.names])
        self.class_count = len(known) + 1
        self.gripper, self.arm = frames.label_of(GRIPPER), frames.label_of(ROBOT_ARM)

    def batch(self) -> Batch:
        """The next batch."""
        views: list[tuple[np.ndarray, ...]] = []
        while len(views) < IMAGES:
            view = self._view()
            if view is not None:
                views.append(view)
        images, masks, boxes, points, classes = (np.stack(parts) for parts in zip(*views, strict=True))
        return Batch(
            pixels=normalize(images),
            masks=torch.from_numpy(masks).float(),
            boxes=torch.from_numpy(boxes).float(),
            points=torch.from_numpy(points).float()[:, :, None],
            classes=torch.from_numpy(classes).long(),
        )

    def _view(self) -> tuple[np.ndarray, ...] | None:
        random, frames = self.random, self.frames
        episode = frames.draw_episode(random)
        kind = random.random()
        if kind < 0.15:
            frame = episode.first + int(random.integers(3))
        elif kind < 0.3:
            frame = frames.near_grasp(episode, int(random.integers(-4, 5)))
        else:
            frame = episode.first + int(random.integers(episode.steps))
        image, labels = frames.images[frame], frames.labels[frame]
        visible = [int(label) for label in np.flatnonzero(frames.areas[frame] >= SMALLEST) if label]
        objects = [label for label in visible if label not in (self.arm, self.gripper)]
        target = frames.label_of(episode.target)
        window = WHOLE_FRAME
        if random.random() < 0.5 and objects:
            centre = target if target in objects and random.random() < 0.6 else objects[random.integers(len(objects))]
            window = draw_window(random, labels == centre)
        image, labels = augment(random, *cut_window(image, labels, window))
        return self._prompts(image, labels, target)

    def _prompts(self, image: np.ndarray, labels: np.ndarray, target: int) -> tuple[np.ndarray, ...] | None:
        """An image with prompts for what is visible: the target twice, the gripper once, the rest at random."""
        random = self.random
        found, areas = np.unique(labels, return_counts=True)
        visible = [int(label) for label, area in zip(found, areas, strict=True) if label and area >= SMALLEST]
        if not visible:
            return None
        asked = [label for label in (self.gripper, target, target) if label in visible]
        asked += [visible[random.integers(len(visible))] for _ in range(PROMPTS - len(asked))]
        masks = np.stack([labels == label for label in asked])
        boxes = np.array([box_around(mask) for mask in masks], dtype=np.float32)
        sides = np.concatenate([boxes[:, 2:] - boxes[:, :2]] * 2, axis=1)
        boxes += np.clip(random.normal(size=boxes.shape) * 0.05 * sides, -10, 10)
        points = []
        for mask in masks:
            rows, columns = np.nonzero(mask)
            chosen = random.integers(len(rows))
            points.append((columns[chosen] + 0.5, rows[chosen] + 0.5))
        return image, masks, boxes.clip(0, SIZE), np.array(points), self.class_of_label[labels]


def embed(model: Sam2Model, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The image embeddings of each level, (images, channels, height, width), as `model.get_image_embeddings` gives them.

    That one runs without gradients; this one has them.
    """
    maps = list(model.get_image_features(pixels, return_dict=True).fpn_hidden_states)
    maps[-1] = maps[-1] + model.no_memory_embedding
    return [
        features.permute(1, 2, 0).view(len(pixels), -1, *size)
        for features, size in zip(maps, model.backbone_feature_sizes, strict=True)
    ]


def batch_loss(model: Sam2Model, naming: torch.nn.Conv2d, batch: Batch, use_points: bool) -> torch.Tensor:
    """The loss (a scalar) of one batch, prompted by its points or by its boxes; `naming` is the head for categories."""
    embeddings = embed(model, batch.pixels)
    shares = functional.one_hot(batch.classes, naming.out_channels).permute(0, 3, 1, 2).float()
    shares = functional.avg_pool2d(shares, SIZE // embeddings[-1].shape[-1])
    interest = 1 - 0.7 * shares[:, :1]  # the background is most of the image
    naming_loss = (-(shares * functional.log_softmax(naming(embeddings[-1]), 1)).sum(1, keepdim=True) * interest).mean()
    if use_points:
        prompts = {"input_points": batch.points, "input_labels": torch.ones(batch.points.shape[:3], dtype=torch.long)}
    else:
        prompts = {"input_boxes": batch.boxes}
    output = model(image_embeddings=embeddings, multimask_output=False, **prompts)
    logits = upsample(output.pred_masks.flatten(0, 1), LOSS_SIZE).view(*batch.masks.shape[:2], LOSS_SIZE, LOSS_SIZE)
    truth = functional.interpolate(batch.masks, (LOSS_SIZE, LOSS_SIZE), mode="area")
    with torch.no_grad():
        reached = mask_iou(logits > 0, truth > 0.5)
    quality = functional.mse_loss(output.iou_scores[..., 0], reached)
    appearing = functional.softplus(-output.object_score_logits).mean()
    return mask_loss(logits, truth).mean() + 0.3 * naming_loss + quality + 0.05 * appearing


@torch.no_grad()
def monitor(model: Sam2Model, frames: Frames) -> dict[str, float]:
    """Mean IoU of masks from true boxes: the gripper at the grasp, the target in a window and in the whole first frame."""
    model.eval()
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {"gripper at grasp": [], "target in window": [], "target in frame": []}
    for episode in frames.episodes:
        target, grasp = frames.label_of(episode.target), frames.near_grasp(episode, 0)
        first = frames.images[episode.first], frames.labels[episode.first]
        cases = {
            "gripper at grasp": (frames.images[grasp], frames.labels[grasp], frames.label_of(GRIPPER)),
            "target in window": (*cut_window(*first, draw_window(random, first[1] == target)), target),
            "target in frame": (*first, target),
        }
        for name, (image, labels, label) in cases.items():
            box = torch.tensor(box_around(labels == label)).float().view(1, 1, 4)
            output = model(pixel_values=normalize(image[None]), input_boxes=box, multimask_output=False)
            mask = upsample(output.pred_masks[:, 0])[0, 0] > 0
            found[name].append(mask_iou(mask, torch.from_numpy(labels == label)).item())
    model.train()
    return {name: round(float(np.mean(values)), 3) for name, values in found.items()}


def main() -> None:
    """Train and save the image model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, required=True, help="folder with train_frames and monitor_frames")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1727)
    parser.add_argument("--minutes", type=float, help="train for so long instead; not repeatable")
    parser.add_argument("--start", type=Path, help="continue from this model, with a new schedule")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    examples = SegmenterExamples(Frames.load(arguments.frames / "train_frames"), random)
    monitored = Frames.load(arguments.frames / "monitor_frames")
    model = Sam2Model.from_pretrained(arguments.start) if arguments.start else new_image_model()
    tie_mask_tokens(model)
    naming = torch.nn.Conv2d(CHANNELS, examples.class_count, 1)
    print(f"{parameter_count(model):,} parameters, {len(examples.frames.images)} frames", flush=True)

    def save() -> None:
        with new_folder(arguments.out, replace=True) as folder:
            model.save_pretrained(folder)

    optimizer = torch.optim.AdamW([*model.parameters(), *naming.parameters()], weight_decay=0.01, betas=(0.9, 0.98))
    schedule = Schedule(arguments.learning_rate, arguments.steps, arguments.minutes)
    losses: list[float] = []
    while schedule.running:
        schedule.advance(optimizer)
        loss = batch_loss(model, naming, examples.batch(), use_points=random.random() < 0.2)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tie_mask_tokens(model)
        losses.append(loss.item())
        if schedule.step % 250 == 0:
            line = f"minute {schedule.elapsed_minutes:.1f} step {schedule.step} loss {np.mean(losses[-100:]):.3f}"
            save()
            print(line, monitor(model, monitored), flush=True)
    save()
    print(
        f"finished: step {schedule.step}, minute {schedule.elapsed_minutes:.1f}", monitor(model, monitored), flush=True
    )


if __name__ == "__main__":
    main()
