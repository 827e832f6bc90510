"""Measure the exported checkpoints with nothing but public classes of transformers, on episodes that trained nothing.

`python -m tiny_models.measure --frames DIR/monitor_frames` prints the numbers of the model cards as JSON, from initial
states 25 to 29. The evaluation sets (states 30 to 49) are for `pixelcli evaluate annotations`.
"""

import argparse
import json
import random as python_random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    BertTokenizer,
    GroundingDinoForObjectDetection,
    Sam2Model,
    Sam2VideoInferenceSession,
    Sam2VideoModel,
)

from pixel160k.format.masks import iou
from simulation.environment import GRIPPER, ROBOT_ARM
from tiny_models.frames import SIZE, Frames, box_around, cut_window, draw_window, normalize
from tiny_models.phrases import phrases_of
from tiny_models.segmenter_model import upsample
from tiny_models.train_detector import best_boxes
from tiny_models.training import box_iou

VIDEO_LENGTH = 8
SMALLEST = 20  # pixels; a smaller object counts as not visible

Measurements = dict[str, float | list[float]]
"""What was measured -> the mean, or five percentiles of scores."""


def measure(folder: Path, frames: Frames) -> dict[str, Measurements]:
    """Measure the checkpoints `<folder>/detector` and `<folder>/segmenter` on the frames of a split."""
    detector = GroundingDinoForObjectDetection.from_pretrained(folder / "detector").eval()
    tokenizer = BertTokenizer.from_pretrained(folder / "detector")
    image_model = Sam2Model.from_pretrained(folder / "segmenter").eval()
    video_model = Sam2VideoModel.from_pretrained(folder / "segmenter").eval()
    with torch.inference_mode():
        return {
            "detector and box prompts": measure_boxes(detector, tokenizer, image_model, frames),
            "video": measure_videos(video_model, frames),
        }


def measure_boxes(
    detector: GroundingDinoForObjectDetection, tokenizer: BertTokenizer, segmenter: Sam2Model, frames: Frames
) -> Measurements:
    """Measure recall and scores of boxes, and the IoU of masks from true and from found boxes; one phrase per image."""
    random = np.random.default_rng(1)
    found: dict[str, list[float]] = defaultdict(list)
    for episode in frames.episodes:
        target, gripper = frames.label_of(episode.target), frames.label_of(GRIPPER)
        first = frames.images[episode.first], frames.labels[episode.first]
        cases = []
        for offset in (-1, 0, 1):
            close = frames.near_grasp(episode, offset)
            cases.append(("gripper", frames.images[close], frames.labels[close], gripper))
        for _ in range(3):
            cases.append(("target", *cut_window(*first, draw_window(random, first[1] == target)), target))
        images = np.stack([image for _, image, _, _ in cases])
        phrases = [phrases_of(frames.names[label - 1])[0] for _, _, _, label in cases]
        boxes, scores = best_boxes(detector, tokenizer, images, phrases)
        true_boxes = torch.tensor([box_around(labels == label) for _, _, labels, label in cases]).float()
        from_found = _masks(segmenter, images, boxes)
        from_true = _masks(segmenter, images, true_boxes)
        for number, (name, _, labels, label) in enumerate(cases):
            alike = _alike(frames, labels, label)
            overlap = box_iou(boxes[number], torch.tensor([box_around(mask) for mask in alike]).float())
            right = bool((overlap >= 0.5).any())
            found[f"{name}: recall at IoU 0.5"].append(float(right))
            found[f"{name}: box IoU"].append(overlap.max().item())
            found[f"{name}: scores of right boxes" if right else f"{name}: scores of wrong boxes"].append(
                scores[number].item()
            )
            true_mask = labels == label
            found[f"{name}: mask IoU from true box"].append(iou(from_true[number], true_mask))
            best = max(iou(from_found[number], mask) for mask in alike)
            found[f"{name}: mask IoU from found box"].append(best)
        absent = _absent(frames, cases[-1][2])
        for phrase in random.permutation(absent)[:3]:
            score = best_boxes(detector, tokenizer, images[-1:], [str(phrase)])[1]
            found["absent phrases: scores"].append(score.item())
    return {name: _summary(name, values) for name, values in sorted(found.items())}


def _summary(name: str, values: list[float]) -> float | list[float]:
    if "scores" in name:  # 5th, 25th, 50th, 75th, 95th percentile
        return [round(float(value), 3) for value in np.percentile(values, (5, 25, 50, 75, 95))]
    return round(float(np.mean(values)), 3)


def _masks(segmenter: Sam2Model, images: np.ndarray, boxes: torch.Tensor) -> np.ndarray:
    output = segmenter(pixel_values=normalize(images), input_boxes=boxes[:, None], multimask_output=False)
    return (upsample(output.pred_masks[:, 0])[:, 0] > 0).numpy()


def _alike(frames: Frames, labels: np.ndarray, label: int) -> list[np.ndarray]:
    """The masks of all visible instances that have the same phrases as one instance, itself included."""
    phrases = phrases_of(frames.names[label - 1])
    numbers = [number for number, name in enumerate(frames.names, 1) if phrases_of(name) == phrases]
    return [labels == number for number in numbers if (labels == number).any()]


def _absent(frames: Frames, labels: np.ndarray) -> list[str]:
    shown = {phrase for label in np.unique(labels) if label for phrase in phrases_of(frames.names[label - 1])}
    return sorted({phrases_of(name)[0] for name in frames.names if name != ROBOT_ARM} - shown)


def measure_videos(model: Sam2VideoModel, frames: Frames) -> Measurements:
    """Measure tracking from a true box: in discrete videos, in consecutive frames, and where the object is missing."""
    draw = python_random.Random(11)
    gripper = frames.label_of(GRIPPER)
    found: dict[str, list[float]] = defaultdict(list)
    suites = sorted({episode.suite for episode in frames.episodes})
    for suite in suites:
        episodes = [episode for episode in frames.episodes if episode.suite == suite]
        others = [episode for episode in frames.episodes if episode.suite != suite]
        for from_middle in (False, False, True, True):
            some = draw.sample(episodes, min(VIDEO_LENGTH, len(episodes)))
            indices = [frames.near_grasp(episode, 0) for episode in some]
            start = len(indices) // 2 if from_middle else 0
            _follow(model, frames, indices, gripper, start, "gripper, discrete videos", found)
        for episode in episodes[:6]:
            target = frames.label_of(episode.target)
            begin = episode.first + max(0, min(episode.grasp_step - 4, episode.steps - VIDEO_LENGTH))
            indices = list(range(begin, begin + VIDEO_LENGTH))
            _follow(model, frames, indices, gripper, 0, "gripper, 5 Hz", found)
            _follow(model, frames, indices[::-1], gripper, 0, "gripper, 5 Hz backwards", found)
            _follow(model, frames, indices, target, 0, "target, 5 Hz around the grasp", found)
            whole = list(range(episode.first, episode.first + episode.steps))
            _follow(model, frames, whole, target, 0, "target, whole episodes", found)
            without = [other for other in others if not frames.areas[other.first, target]]
            if without:
                indices = [*whole[:3], draw.choice(without).first, whole[3]]
                _follow(model, frames, indices, target, 0, "target, one frame of another scene", found)
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(found.items())}


def _follow(
    model: Sam2VideoModel,
    frames: Frames,
    indices: Sequence[int],
    label: int,
    start: int,
    name: str,
    found: dict[str, list[float]],
) -> None:
    """Track one object both ways from its true box on frame `start`; add what is reached on the others to `found`."""
    images, labels = frames.images[list(indices)], frames.labels[list(indices)]
    if (labels[start] == label).sum() < SMALLEST:
        return
    session = Sam2VideoInferenceSession(
        video=normalize(images), video_height=SIZE, video_width=SIZE, dtype=torch.float32
    )
    index = session.obj_id_to_idx(1)
    corners = torch.tensor(box_around(labels[start] == label)).float().view(1, 1, 2, 2)
    session.add_point_inputs(
        index, start, {"point_coords": corners, "point_labels": torch.tensor([[[2, 3]]], dtype=torch.int32)}
    )
    session.obj_with_new_inputs = [1]
    for reverse in (False, True) if start else (False,):
        for output in model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
            if output.frame_idx == start:
                continue
            true_mask = labels[output.frame_idx] == label
            mask = (upsample(output.pred_masks)[0, 0] > 0).numpy()
            if true_mask.sum() >= SMALLEST:
                found[f"{name}: mask IoU"].append(iou(mask, true_mask))
                found[f"{name}: seen where it is"].append(float(mask.any()))
            elif not true_mask.any():
                found[f"{name}: not seen where it is not"].append(float(not mask.any()))


def main() -> None:
    """Print what was measured, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, default=Path("annotate/annotators/tiny"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(arguments.checkpoints, Frames.load(arguments.frames)), indent=1))


if __name__ == "__main__":
    main()
