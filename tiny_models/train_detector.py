"""Train the tiny Grounding DINO from scratch: whole frames for the gripper, zoomed windows for the objects.

A prompt is mostly one phrase with a final period, as the annotation asks; a quarter of those name something that is not
there. Other prompts have several phrases, from which the model learns to tell phrases apart.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import BertTokenizer, GroundingDinoForObjectDetection

from pixel160k.files import new_folder
from simulation.environment import GRIPPER, ROBOT_ARM
from tiny_models.detector_model import new_detector, one_to_many_loss, write_vocabulary
from tiny_models.frames import SIZE, WHOLE_FRAME, Frames, augment, box_around, cut_window, draw_window, normalize
from tiny_models.phrases import COMMON_WORDS, phrases_of
from tiny_models.training import Schedule, box_corners, box_iou, parameter_count

IMAGES = 6  # per batch
SMALLEST = 30  # pixels; a smaller object is not asked for
LEAST_VISIBLE = 0.3  # an object of which a window shows less is neither asked for nor used as absent


@dataclass(frozen=True)
class View:
    """An image with what can be asked about it."""

    image: np.ndarray  # uint8 (256, 256, 3), RGB
    boxes: dict[str, list[tuple[int, int, int, int]]]  # phrase -> the boxes of what it names, in pixels
    absent: list[str]  # phrases that name nothing in the image
    centre_phrase: str  # the phrase of the object that the view was made for, "" if that cannot be asked for


class DetectorExamples:
    """Draws training batches from the frames of a split."""

    def __init__(self, frames: Frames, tokenizer: BertTokenizer, random: np.random.Generator) -> None:
        """Draw from frames; all kinds of episodes come equally often."""
        self.frames, self.tokenizer, self.random = frames, tokenizer, random

    def batch(self) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
        """The next batch: the inputs of the model, and the labels of each image."""
        images: list[np.ndarray] = []
        prompts: list[list[str]] = []
        labels: list[dict[str, torch.Tensor]] = []
        while len(images) < IMAGES:
            view = self._view()
            if not view.boxes:
                continue
            phrases = self._phrases(view)
            images.append(view.image)
            prompts.append(phrases)
            labels.append(_labels(view, phrases))
        return model_inputs(self.tokenizer, np.stack(images), prompts), labels

    def _view(self) -> View:
        random, frames = self.random, self.frames
        episode = frames.draw_episode(random)
        kind = random.random()
        if kind < 0.4:
            frame = episode.first + int(random.integers(2))
        elif kind < 0.7:
            frame = frames.near_grasp(episode, int(random.integers(-3, 4)))
        else:
            frame = episode.first + int(random.integers(episode.steps))
        image, labels, window = frames.images[frame], frames.labels[frame], WHOLE_FRAME
        centre = frames.label_of(GRIPPER)
        if random.random() < (0.85 if kind < 0.4 else 0.4):  # regions are asked about on first frames
            robot = (frames.label_of(GRIPPER), frames.label_of(ROBOT_ARM))
            visible = [
                int(label) for label in np.flatnonzero(frames.areas[frame] >= SMALLEST) if label and label not in robot
            ]
            target = frames.label_of(episode.target)
            if visible:
                wanted = target in visible and random.random() < 0.55
                centre = target if wanted else visible[random.integers(len(visible))]
                window = draw_window(random, labels == centre)
        whole_areas = frames.areas[frame]
        scale = SIZE * SIZE / (window.width * window.height)
        image, labels = augment(random, *cut_window(image, labels, window))
        return describe_view(frames, image, labels, whole_areas * scale, centre, random)

    def _phrases(self, view: View) -> list[str]:
        random = self.random
        present = list(view.boxes)
        if random.random() < 0.6:
            if random.random() < 0.25:
                return [view.absent[random.integers(len(view.absent))]]
            if view.centre_phrase and random.random() < 0.6:
                return [view.centre_phrase]
            return [present[random.integers(len(present))]]
        chosen = random.permutation(present)[: random.integers(1, 7)].tolist()
        chosen += random.permutation(view.absent)[: random.integers(0, 4)].tolist()
        return random.permutation(chosen).tolist()


def describe_view(
    frames: Frames,
    image: np.ndarray,
    labels: np.ndarray,
    whole_areas: np.ndarray,
    centre: int,
    random: np.random.Generator,
) -> View:
    """Find what can be asked about an image with label map, uint8 (256, 256); `centre` is the label it was made for.

    `whole_areas` are the pixels that each label would have if the window cut nothing off.
    """
    shown = np.bincount(labels.ravel(), minlength=len(frames.names) + 1)
    boxes: dict[str, list[tuple[int, int, int, int]]] = {}
    unclear: set[str] = set()
    centre_phrase = ""
    worded: dict[tuple[str, ...], str] = {}  # all instances of a category get the same phrase
    for label in np.flatnonzero(shown[1:]) + 1:
        phrases = phrases_of(frames.names[label - 1])
        if shown[label] < SMALLEST or shown[label] < LEAST_VISIBLE * whole_areas[label]:
            unclear.update(phrases)
            continue
        usual = random.random() < 0.75
        phrase = worded.setdefault(phrases, phrases[0] if usual else phrases[random.integers(len(phrases))])
        boxes.setdefault(phrase, []).append(box_around(labels == label))
        centre_phrase = phrase if label == centre else centre_phrase
    everything = {phrase for name in frames.names for phrase in phrases_of(name)}
    seen = {phrase for name in frames.names for phrase in phrases_of(name) if shown[frames.label_of(name)]}
    clear = {phrase: found for phrase, found in boxes.items() if phrase not in unclear}
    return View(image, clear, sorted(everything - seen), centre_phrase if centre_phrase in clear else "")


def _labels(view: View, phrases: list[str]) -> dict[str, torch.Tensor]:
    numbers, boxes = [], []
    for number, phrase in enumerate(phrases):
        for left, top, right, bottom in view.boxes.get(phrase, []):
            numbers.append(number)
            boxes.append(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top))
    return {
        "class_labels": torch.tensor(numbers, dtype=torch.long),
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4) / SIZE,
    }


def model_inputs(tokenizer: BertTokenizer, images: np.ndarray, prompts: list[list[str]]) -> dict[str, torch.Tensor]:
    """The inputs of the model for images, uint8 (n, 256, 256, 3) RGB, and the phrases to look for in each."""
    text = tokenizer([" . ".join(phrases) + " ." for phrases in prompts], padding=True, return_tensors="pt")
    mask = torch.ones(len(images), SIZE, SIZE, dtype=torch.long)
    return {"pixel_values": normalize(images), "pixel_mask": mask, **text}


@torch.no_grad()
def best_boxes(
    model: GroundingDinoForObjectDetection, tokenizer: BertTokenizer, images: np.ndarray, prompts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best box for one phrase per image: boxes (images, 4) as left, top, right, bottom in pixels; scores (images,)."""
    output = model(**model_inputs(tokenizer, images, [[prompt] for prompt in prompts]))
    scores, queries = output.logits.sigmoid().max(-1).values.max(-1)
    boxes = box_corners(output.pred_boxes)[torch.arange(len(images)), queries]
    return boxes * SIZE, scores


@torch.no_grad()
def monitor(model: GroundingDinoForObjectDetection, tokenizer: BertTokenizer, frames: Frames) -> dict[str, float]:
    """Mean recall at IoU 0.5 and mean scores: the gripper in close frames, the target in windows, phrases that are absent."""
    model.eval()
    random = np.random.default_rng(0)
    recalls: dict[str, list[bool]] = {"gripper": [], "target": []}
    scores: dict[str, list[float]] = {"gripper": [], "target": [], "absent": []}
    for episode in frames.episodes:
        target, gripper = frames.label_of(episode.target), frames.label_of(GRIPPER)
        first = frames.images[episode.first], frames.labels[episode.first]
        cases = []
        for offset in (-1, 1):
            close = frames.near_grasp(episode, offset)
            cases.append(("gripper", frames.images[close], frames.labels[close], gripper))
        for _ in range(2):
            window = draw_window(random, first[1] == target)
            cases.append(("target", *cut_window(*first, window), target))
        images = np.stack([image for _, image, _, _ in cases])
        phrases = [phrases_of(frames.names[label - 1])[0] for _, _, _, label in cases]
        boxes, found = best_boxes(model, tokenizer, images, phrases)
        for (name, _, labels, label), box, score in zip(cases, boxes, found, strict=True):
            same = [
                number + 1
                for number, other in enumerate(frames.names)
                if phrases_of(other) == phrases_of(frames.names[label - 1])
            ]
            masks = [labels == number for number in same if (labels == number).any()]
            true = torch.tensor([box_around(mask) for mask in masks]).float()
            recalls[name].append(bool((box_iou(box, true) >= 0.5).any()))
            scores[name].append(score.item())
        shown = {phrase for label in np.unique(cases[-1][2]) if label for phrase in phrases_of(frames.names[label - 1])}
        absent = sorted({phrases_of(name)[0] for name in frames.names} - shown)
        if absent:
            missing = best_boxes(model, tokenizer, images[-1:], [absent[random.integers(len(absent))]])[1]
            scores["absent"].append(missing.item())
    model.train()
    result = {f"{name} recall": round(float(np.mean(values)), 3) for name, values in recalls.items()}
    return result | {f"{name} score": round(float(np.mean(values)), 2) for name, values in scores.items()}


def main() -> None:
    """Train and save the detector."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, required=True, help="folder with train_frames and monitor_frames")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2854)
    parser.add_argument("--minutes", type=float, help="train for so long instead; not repeatable")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    frames = Frames.load(arguments.frames / "train_frames")
    monitored = Frames.load(arguments.frames / "monitor_frames")
    words = {word for name in frames.names for phrase in phrases_of(name) for word in phrase.split()}
    vocabulary = arguments.out.with_name("detector_vocab.txt")
    vocabulary.parent.mkdir(parents=True, exist_ok=True)
    write_vocabulary(words | set(COMMON_WORDS), vocabulary)
    tokenizer = BertTokenizer(vocab=str(vocabulary))
    examples = DetectorExamples(frames, tokenizer, np.random.default_rng(arguments.seed))
    model = new_detector(tokenizer)
    print(f"{parameter_count(model):,} parameters, {len(frames.images)} frames, {len(tokenizer)} tokens", flush=True)

    def save() -> None:
        with new_folder(arguments.out, replace=True) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / "vocab.txt").write_bytes(vocabulary.read_bytes())

    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4, betas=(0.9, 0.98))
    schedule = Schedule(6e-4, arguments.steps, arguments.minutes, warm_up=200)
    losses: list[float] = []
    while schedule.running:
        schedule.advance(optimizer)
        inputs, labels = examples.batch()
        output = model(**inputs, labels=labels)
        loss = output.loss + one_to_many_loss(output, inputs, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if schedule.step % 400 == 0:
            line = f"minute {schedule.elapsed_minutes:.1f} step {schedule.step} loss {np.mean(losses[-100:]):.3f}"
            save()
            print(line, monitor(model, tokenizer, monitored), flush=True)
    save()
    end = f"finished: step {schedule.step}, minute {schedule.elapsed_minutes:.1f}"
    print(end, monitor(model, tokenizer, monitored), flush=True)


if __name__ == "__main__":
    main()
