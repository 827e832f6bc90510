"""Second phase of the tiny SAM 2: its memory, on features of the frozen encoder that are computed once.

Half of the clips start from a box, half from a mask. Tracking calls the same parts of `Sam2VideoModel` as its inference session does, in evaluation mode, for a batch of clips
at once. Gradients flow back through object pointers and memory features, but not through remembered masks.
"""

import argparse
import random as python_random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from transformers import Sam2Model, Sam2VideoModel

from pixel160k.files import new_folder
from simulation.environment import GRIPPER
from tiny_models.clips import ClipMaker, Clips, Footage, add_zoomed_shots
from tiny_models.frames import SIZE, Frames, box_around, normalize
from tiny_models.segmenter_model import (
    CHANNELS,
    REMEMBERED_FRAMES,
    mask_iou,
    mask_loss,
    new_video_model,
    tie_mask_tokens,
    upsample,
)
from tiny_models.training import Schedule, parameter_count

LOSS_SIZE = SIZE // 2
CLIPS_BY_LENGTH = {2: 24, 3: 16, 4: 12, 6: 8}  # frames of a clip -> clips per batch
SMALLEST_VISIBLE = 20  # pixels; a smaller object counts as not visible


@dataclass(frozen=True)
class Features:
    """The encoder's output for all frames."""

    levels: list[torch.Tensor]  # per level (frames, channels, positions), fp16 to save memory
    positions: torch.Tensor  # the position encoding (positions, 1, channels) of the coarsest level


@torch.no_grad()
def encode_frames(model: Sam2VideoModel, images: np.ndarray) -> Features:
    """Run the encoder once over all frames, uint8 (frames, 256, 256, 3) RGB."""
    levels: list[list[torch.Tensor]] = [[], [], []]
    positions = torch.empty(0)
    for start in range(0, len(images), 8):
        output = model.get_image_features(normalize(images[start : start + 8]), return_dict=True)
        for level, features in zip(levels, output.fpn_hidden_states, strict=True):
            level.append(features.permute(1, 2, 0).to(torch.float16))
        positions = output.fpn_position_encoding[-1][:, :1].clone()
    return Features([torch.cat(level) for level in levels], positions)


def track_clips(
    model: Sam2VideoModel,
    features: Features,
    clips: Clips,
    from_masks: bool,
    truth_share: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Track through clips from the boxes or from the masks on their first frames.

    Returns mask logits (clips, length, 64, 64) and the logits of object scores (clips, length). `truth_share` is the
    share of remembered masks that are replaced by true ones: early in training the model's own are useless.
    """
    count, length = clips.frame_indices.shape
    masks = torch.from_numpy(clips.masks).float()
    prompted = torch.from_numpy(clips.prompts)[:, None].float()
    memories: list[tuple[torch.Tensor, torch.Tensor]] = []
    pointers: list[torch.Tensor] = []
    logits, scores = [], []
    for step in range(length):
        frames = torch.from_numpy(np.ascontiguousarray(clips.frame_indices[:, step]))
        maps = [level[frames].float() for level in features.levels]
        fine = [
            level.reshape(count, -1, *size)
            for level, size in zip(maps[:2], model.backbone_feature_sizes[:2], strict=True)
        ]
        coarse = maps[2].permute(2, 0, 1)  # (positions, clips, channels)
        if step == 0 and from_masks:
            conditioned = coarse
            prompts = {"input_masks": model.mask_downsample(prompted)}
        elif step == 0:
            conditioned = coarse + model.no_memory_embedding
            prompts = {
                "input_points": torch.from_numpy(clips.boxes).view(count, 1, 2, 2),
                "input_labels": torch.tensor([[2, 3]], dtype=torch.int32).expand(count, 1, 2),
            }
        else:
            conditioned = _remember(model, coarse, features.positions, memories, pointers)
            prompts = {}
        side = SIZE // 16
        pixels = conditioned.permute(1, 2, 0).reshape(count, CHANNELS, side, side)
        output = model._single_frame_forward(
            image_embeddings=[*fine, pixels],  # type: ignore[arg-type]  # a list of levels, whatever the hint says
            multimask_output=False,
            **prompts,  # type: ignore[arg-type]  # a dict of the right tensors
        )
        predicted, large, pointer = output.pred_masks, output.high_res_masks, output.object_pointer
        assert predicted is not None and large is not None and pointer is not None
        assert output.object_score_logits is not None
        score = output.object_score_logits.reshape(count)
        logits.append(predicted.reshape(count, *predicted.shape[-2:]))
        scores.append(score)
        pointers.append(pointer.reshape(count, CHANNELS))
        if step < length - 1:
            if step == 0 and from_masks:  # such a mask is remembered as it is
                remembered, present = prompted * 20 - 10, torch.full_like(score, 10)
            else:
                use_truth = (torch.rand(count) < truth_share).view(-1, 1, 1, 1)
                predicted_mask = large.detach().reshape(count, 1, SIZE, SIZE)
                remembered, present = torch.where(use_truth, masks[:, step, None] * 20 - 10, predicted_mask), score
            memory, encoding = model._encode_new_memory(coarse, remembered, present.view(count, 1, 1), step == 0)
            expanded = encoding.expand(-1, count, -1)  # type: ignore[attr-defined]  # a tensor; the hint says a list
            memories.append((memory, expanded))
    return torch.stack(logits, 1), torch.stack(scores, 1)


def _remember(
    model: Sam2VideoModel,
    coarse: torch.Tensor,
    positions: torch.Tensor,
    memories: list[tuple[torch.Tensor, torch.Tensor]],
    pointers: list[torch.Tensor],
) -> torch.Tensor:
    """The coarse features (positions, clips, channels) after attention to the memory, in the same shape.

    The memory holds what that of an inference session would hold.
    """
    step, count = len(memories), coarse.shape[1]
    ages = [(0, 0)]  # (age, step): the prompted frame first, as age 0
    ages += [(age, step - age) for age in range(REMEMBERED_FRAMES - 1, 0, -1) if step - age > 0]
    kept = [memories[frame][0] for _, frame in ages]
    encodings = [memories[frame][1] + model.memory_temporal_positional_encoding[age - 1] for age, frame in ages]
    pointed = [0] + [step - age for age in range(1, REMEMBERED_FRAMES) if step - age > 0]
    tokens, token_encodings = model._process_object_pointers(
        [0] * len(pointed), [pointers[frame] for frame in pointed], REMEMBERED_FRAMES, count, CHANNELS, coarse.device
    )
    attended = model.memory_attention(
        current_vision_features=coarse,
        current_vision_position_embeddings=positions,
        memory=torch.cat([*kept, tokens]).float(),
        memory_posision_embeddings=torch.cat([*encodings, token_encodings]),
        num_object_pointer_tokens=len(tokens),
    )
    return attended.reshape(count, -1, CHANNELS).transpose(0, 1)


def monitored_clips(footage: Footage) -> dict[str, Clips]:
    """Fixed clips of eight frames: the gripper in close frames of a suite; the gripper and the target within an episode."""
    frames = footage.frames
    draw = python_random.Random(7)
    gripper = frames.label_of(GRIPPER)
    chosen: dict[str, list[tuple[list[int], int]]] = {"discrete gripper": [], "gripper": [], "target": []}
    for episodes in frames.by_kind:
        for _ in range(4):
            some = draw.sample(episodes, min(8, len(episodes)))
            chosen["discrete gripper"].append(([frames.near_grasp(episode, 0) for episode in some], gripper))
    for episode in frames.episodes:
        start = max(0, min(episode.grasp_step - 3, episode.steps - 8))
        clip = [episode.first + start + step for step in range(8)]
        chosen["gripper"].append((clip, gripper))
        if frames.areas[clip[0], frames.label_of(episode.target)] >= SMALLEST_VISIBLE:
            chosen["target"].append((clip, frames.label_of(episode.target)))
    made = {}
    for name, clips in chosen.items():
        indices = np.array([clip for clip, _ in clips])
        masks = np.stack([footage.labels[clip] == label for clip, label in clips])
        boxes = np.array([box_around(mask[0]) for mask in masks], dtype=np.float32)
        made[name] = Clips(indices, masks, boxes, prompts=masks[:, 0])
    return made


@torch.no_grad()
def monitor(model: Sam2VideoModel, features: Features, clips_by_name: dict[str, Clips]) -> dict[str, float]:
    """Mean IoU on the first (prompted) and on the later (tracked) frames of clips, where the object is visible."""
    result = {}
    for name, clips in clips_by_name.items():
        masks = torch.from_numpy(clips.masks)
        visible = masks.sum((-1, -2)) >= SMALLEST_VISIBLE
        for prompt in ("box", "mask"):
            logits, _ = track_clips(model, features, clips, from_masks=prompt == "mask")
            reached = mask_iou(upsample(logits) > 0, masks)
            result[f"{name}, {prompt}, first"] = round(reached[:, 0].mean().item(), 3)
            result[f"{name}, {prompt}, later"] = round(reached[:, 1:][visible[:, 1:]].mean().item(), 3)
    return result


def batch_loss(
    model: Sam2VideoModel, features: Features, clips: Clips, from_masks: bool, truth_share: float
) -> torch.Tensor:
    """The loss (a scalar) of one batch of clips: of the masks where the object is visible, of the object scores everywhere."""
    logits, scores = track_clips(model, features, clips, from_masks, truth_share)
    masks = torch.from_numpy(clips.masks)
    visible = (masks.sum((-1, -2)) >= SMALLEST_VISIBLE).float()
    truth = functional.interpolate(masks.float(), (LOSS_SIZE, LOSS_SIZE), mode="area")
    # Where the model sees no object, its logits are a constant -1024 without a gradient: their loss is left out.
    losses = mask_loss(upsample(logits, LOSS_SIZE).clamp(min=-30), truth)
    weight = visible * (scores.detach() > 0)
    weight[:, 0] *= 0.5
    denied = functional.binary_cross_entropy_with_logits(scores, visible)
    return (losses * weight).sum() / weight.sum().clamp(min=1) + 0.2 * denied


def main() -> None:
    """Train the memory on top of an image model and save the video model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, required=True, help="folder with train_frames and monitor_frames")
    parser.add_argument("--image-model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--minutes", type=float, help="train for so long instead; not repeatable")
    parser.add_argument("--start", type=Path, help="continue from this video model, made from that image model")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--shots", type=int, default=240, help="zoomed shots to add")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    model = new_video_model(Sam2Model.from_pretrained(arguments.image_model))
    if arguments.start:
        model.load_state_dict(Sam2VideoModel.from_pretrained(arguments.start).state_dict())
    footage = add_zoomed_shots(Frames.load(arguments.frames / "train_frames"), arguments.shots, random)
    watched = add_zoomed_shots(Frames.load(arguments.frames / "monitor_frames"), 0, random)
    print(f"{parameter_count(model):,} parameters, {len(footage.images)} frames to encode", flush=True)
    features, watched_features = encode_frames(model, footage.images), encode_frames(model, watched.images)
    maker, watched_clips = ClipMaker(footage, random), monitored_clips(watched)
    print("features encoded; untrained memory:", monitor(model, watched_features, watched_clips), flush=True)
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    prompted = [parameter for name, parameter in learned.items() if name.startswith(("mask_dec", "prompt"))]
    memory = [parameter for name, parameter in learned.items() if not name.startswith(("mask_dec", "prompt"))]
    groups = [{"params": memory, "factor": 1.0}, {"params": prompted, "factor": 0.6}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = Schedule(arguments.learning_rate, arguments.steps, arguments.minutes, warm_up=40)
    losses: list[float] = []

    def save() -> None:
        with new_folder(arguments.out, replace=True) as folder:
            model.save_pretrained(folder)

    while schedule.running:
        schedule.advance(optimizer)
        progress = schedule.progress
        lengths = (2,) if progress < 0.15 else (2, 3, 4) if progress < 0.5 else (3, 4, 6)
        length = int(random.choice(lengths))
        clips = maker.draw(CLIPS_BY_LENGTH[length], length)
        from_masks = bool(random.random() < 0.5)
        loss = batch_loss(model, features, clips, from_masks, max(0.0, 0.5 - progress))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*prompted, *memory], 1.0)
        optimizer.step()
        tie_mask_tokens(model)
        losses.append(loss.item())
        if schedule.step % 200 == 0:
            line = f"minute {schedule.elapsed_minutes:.1f} step {schedule.step} loss {np.mean(losses[-100:]):.3f}"
            save()
            print(line, monitor(model, watched_features, watched_clips), flush=True)
    save()
    end = f"finished: step {schedule.step}, minute {schedule.elapsed_minutes:.1f}"
    print(end, monitor(model, watched_features, watched_clips), flush=True)


if __name__ == "__main__":
    main()
