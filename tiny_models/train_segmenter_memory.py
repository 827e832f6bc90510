"""Second phase of the tiny SAM 2: its memory, on features of the frozen encoder that are computed once.

The unrolled tracking calls the very parts of `Sam2VideoModel` that its session calls, in evaluation mode, batched over
clips. No gradient goes back through remembered masks; it does go through object pointers and memory features.
"""

import argparse
import random as python_random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from transformers import Sam2Model, Sam2VideoModel

from simulation.environment import GRIPPER
from tiny_models.clips import ClipMaker, Clips, Footage, shoot
from tiny_models.frames import SIZE, Frames, box_around, normalize
from tiny_models.segmenter_model import (
    CHANNELS,
    REMEMBERED_FRAMES,
    mask_iou,
    mask_loss,
    new_video_model,
    upsample,
)
from tiny_models.training import Schedule, parameter_count, save_folder

LOSS_SIZE = SIZE // 2
CLIPS_BY_LENGTH = {2: 24, 3: 16, 4: 12}
SMALLEST_VISIBLE = 20  # pixels of an object that counts as seen


@dataclass(frozen=True)
class Features:
    """The encoder's output for all frames, fp16 to save memory: (frames, channels, positions) by level."""

    levels: list[torch.Tensor]
    positions: torch.Tensor  # the position encoding of the coarsest level


@torch.no_grad()
def encode(model: Sam2VideoModel, images: np.ndarray) -> Features:
    """Run the encoder once over all frames."""
    levels: list[list[torch.Tensor]] = [[], [], []]
    positions = torch.empty(0)
    for start in range(0, len(images), 8):
        output = model.get_image_features(normalize(images[start : start + 8]), return_dict=True)
        for level, features in zip(levels, output.fpn_hidden_states, strict=True):
            level.append(features.permute(1, 2, 0).to(torch.float16))
        positions = output.fpn_position_encoding[-1][:, :1].clone()
    return Features([torch.cat(level) for level in levels], positions)


def track(
    model: Sam2VideoModel,
    features: Features,
    clips: Clips,
    truth_share: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Track through clips from the boxes on their first frames: mask logits (clips, length, h, w), object scores.

    A share of the remembered masks is the truth instead of the model's own: early in training its own are useless.
    """
    count, length = clips.numbers.shape
    masks = torch.from_numpy(clips.masks).float()
    memories: list[tuple[torch.Tensor, torch.Tensor]] = []
    pointers: list[torch.Tensor] = []
    logits, scores = [], []
    for step in range(length):
        numbers = torch.from_numpy(np.ascontiguousarray(clips.numbers[:, step]))
        maps = [level[numbers].float() for level in features.levels]
        fine = [
            level.reshape(count, -1, *size)
            for level, size in zip(maps[:2], model.backbone_feature_sizes[:2], strict=True)
        ]
        coarse = maps[2].permute(2, 0, 1)  # (positions, clips, channels)
        if step == 0:
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
        output = model._single_frame_forward(image_embeddings=[*fine, pixels], multimask_output=False, **prompts)
        score = output.object_score_logits.reshape(count)
        logits.append(output.pred_masks.reshape(count, *output.pred_masks.shape[-2:]))
        scores.append(score)
        pointers.append(output.object_pointer.reshape(count, CHANNELS))
        if step < length - 1:
            remembered = output.high_res_masks.detach().reshape(count, 1, SIZE, SIZE)
            use_truth = (torch.rand(count) < truth_share).view(-1, 1, 1, 1)
            remembered = torch.where(use_truth, masks[:, step, None] * 20 - 10, remembered)
            memory, place = model._encode_new_memory(coarse, remembered, score.view(count, 1, 1), step == 0)
            memories.append((memory, place.expand(-1, count, -1)))
    return torch.stack(logits, 1), torch.stack(scores, 1)


def _remember(
    model: Sam2VideoModel,
    coarse: torch.Tensor,
    positions: torch.Tensor,
    memories: list[tuple[torch.Tensor, torch.Tensor]],
    pointers: list[torch.Tensor],
) -> torch.Tensor:
    """The coarse features (positions, clips, channels) after attention to the memory, which holds what a session's would."""
    step, count = len(memories), coarse.shape[1]
    ages = [(0, 0)]  # (age, frame): the prompted frame first, as age 0
    ages += [(age, step - age) for age in range(REMEMBERED_FRAMES - 1, 0, -1) if step - age > 0]
    kept = [memories[frame][0] for _, frame in ages]
    places = [memories[frame][1] + model.memory_temporal_positional_encoding[age - 1] for age, frame in ages]
    pointed = [0] + [step - age for age in range(1, REMEMBERED_FRAMES) if step - age > 0]
    tokens, token_places = model._process_object_pointers(
        [0] * len(pointed), [pointers[frame] for frame in pointed], REMEMBERED_FRAMES, count, CHANNELS, coarse.device
    )
    attended = model.memory_attention(
        current_vision_features=coarse,
        current_vision_position_embeddings=positions,
        memory=torch.cat([*kept, tokens]).float(),
        memory_posision_embeddings=torch.cat([*places, token_places]),
        num_object_pointer_tokens=len(tokens),
    )
    return attended.reshape(count, -1, CHANNELS).transpose(0, 1)


def monitored_clips(footage: Footage) -> dict[str, Clips]:
    """Fixed clips of eight frames: the gripper through close frames of a suite; gripper and target through an episode."""
    frames = footage.frames
    draw = python_random.Random(7)
    gripper = frames.label_of(GRIPPER)
    chosen: dict[str, list[tuple[list[int], int]]] = {"discrete gripper": [], "gripper": [], "target": []}
    for suite in sorted({episode.suite for episode in frames.episodes}):
        episodes = [episode for episode in frames.episodes if episode.suite == suite]
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
        numbers = np.array([clip for clip, _ in clips])
        masks = np.stack([footage.labels[clip] == label for clip, label in clips])
        made[name] = Clips(numbers, masks, np.array([box_around(mask[0]) for mask in masks], dtype=np.float32))
    return made


@torch.no_grad()
def monitor(model: Sam2VideoModel, features: Features, clips_by_name: dict[str, Clips]) -> dict[str, float]:
    """Mean IoU of the first (prompted) and of the later (tracked) frames, where the object is seen."""
    result = {}
    for name, clips in clips_by_name.items():
        logits, _ = track(model, features, clips)
        masks = torch.from_numpy(clips.masks)
        reached = mask_iou(upsample(logits) > 0, masks)
        visible = masks.sum((-1, -2)) >= SMALLEST_VISIBLE
        result[f"{name} first"] = round(reached[:, 0].mean().item(), 3)
        result[f"{name} later"] = round(reached[:, 1:][visible[:, 1:]].mean().item(), 3)
    return result


def step_loss(model: Sam2VideoModel, features: Features, clips: Clips, truth_share: float) -> torch.Tensor:
    """The loss of one batch of clips: masks where the object is seen, object scores everywhere."""
    logits, scores = track(model, features, clips, truth_share)
    masks = torch.from_numpy(clips.masks)
    visible = (masks.sum((-1, -2)) >= SMALLEST_VISIBLE).float()
    truth = functional.interpolate(masks.float(), (LOSS_SIZE, LOSS_SIZE), mode="area")
    # Where the model denies the object its logits are a constant -1024: no gradient, so no use for their loss either.
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
    parser.add_argument("--steps", type=int, default=686)
    parser.add_argument("--minutes", type=float, help="train for so long instead; not repeatable")
    parser.add_argument("--shots", type=int, default=240, help="zoomed shots to add")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    model = new_video_model(Sam2Model.from_pretrained(arguments.image_model))
    footage = shoot(Frames.load(arguments.frames / "train_frames"), arguments.shots, random)
    watched = shoot(Frames.load(arguments.frames / "monitor_frames"), 0, random)
    print(f"{parameter_count(model):,} parameters, {len(footage.images)} frames to encode", flush=True)
    features, watched_features = encode(model, footage.images), encode(model, watched.images)
    maker, watched_clips = ClipMaker(footage, random), monitored_clips(watched)
    print("features encoded; untrained memory:", monitor(model, watched_features, watched_clips), flush=True)
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    prompted = [parameter for name, parameter in learned.items() if name.startswith(("mask_dec", "prompt"))]
    memory = [parameter for name, parameter in learned.items() if not name.startswith(("mask_dec", "prompt"))]
    groups = [{"params": memory, "factor": 1.0}, {"params": prompted, "factor": 0.6}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = Schedule(8e-4, arguments.steps, arguments.minutes, warm_up=40)
    losses: list[float] = []
    while schedule.running:
        schedule.advance(optimizer)
        progress = schedule.progress
        lengths = (2,) if progress < 0.2 else (2, 3, 4) if progress < 0.6 else (3, 4)
        length = int(random.choice(lengths))
        clips = maker.draw(CLIPS_BY_LENGTH[length], length)
        loss = step_loss(model, features, clips, max(0.0, 0.6 - progress))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*prompted, *memory], 1.0)
        optimizer.step()
        losses.append(loss.item())
        if schedule.step % 200 == 0:
            line = f"minute {schedule.elapsed_minutes:.1f} step {schedule.step} loss {np.mean(losses[-100:]):.3f}"
            save_folder(arguments.out, model.save_pretrained)
            print(line, monitor(model, watched_features, watched_clips), flush=True)
    save_folder(arguments.out, model.save_pretrained)
    end = f"finished: step {schedule.step}, minute {schedule.elapsed_minutes:.1f}"
    print(end, monitor(model, watched_features, watched_clips), flush=True)


if __name__ == "__main__":
    main()
