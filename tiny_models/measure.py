"""Measure the exported checkpoints through transformers' public classes alone, on episodes they were not trained on.

`python -m tiny_models.measure --frames DIR/monitor_frames` prints the numbers of the model cards as JSON: states 25 to
29, which gave no gradient. The evaluation sets (states 30 to 49) are for `pixelcli evaluate annotations`.
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

from simulation.environment import GRIPPER, ROBOT_ARM
from tiny_models.frames import SIZE, Frames, box_around, cut, draw_window, normalize
from tiny_models.phrases import phrases_of
from tiny_models.segmenter_model import upsample
from tiny_models.train_detector import best_boxes
from tiny_models.training import box_iou

VIDEO_LENGTH = 8
SMALLEST = 20  # pixels of an object that counts as seen
Numbers = dict[str, float | list[float]]


def measure(folder: Path, frames: Frames) -> dict[str, Numbers]:
    """All numbers of both checkpoints below `folder`, by what they are about."""
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
) -> Numbers:
    """Recall, scores, and mask IoU from true and from found boxes, as the pipeline asks: one phrase an image."""
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
            cases.append(("target", *cut(*first, draw_window(random, first[1] == target)), target))
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
            truth = labels == label
            found[f"{name}: mask IoU from true box"].append(_iou(from_true[number], truth))
            best = max(_iou(from_found[number], mask) for mask in alike)
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
    """The masks of all instances that the phrases of one instance name as well."""
    phrases = phrases_of(frames.names[label - 1])
    numbers = [number for number, name in enumerate(frames.names, 1) if phrases_of(name) == phrases]
    return [labels == number for number in numbers if (labels == number).any()]


def _absent(frames: Frames, labels: np.ndarray) -> list[str]:
    shown = {phrase for label in np.unique(labels) if label for phrase in phrases_of(frames.names[label - 1])}
    return sorted({phrases_of(name)[0] for name in frames.names if name != ROBOT_ARM} - shown)


def measure_videos(model: Sam2VideoModel, frames: Frames) -> Numbers:
    """Tracking from a true box: discrete videos of the gripper, consecutive frames, and objects that are missing."""
    draw = python_random.Random(11)
    gripper = frames.label_of(GRIPPER)
    found: dict[str, list[float]] = defaultdict(list)
    suites = sorted({episode.suite for episode in frames.episodes})
    for suite in suites:
        episodes = [episode for episode in frames.episodes if episode.suite == suite]
        others = [episode for episode in frames.episodes if episode.suite != suite]
        for from_middle in (False, False, True, True):
            some = draw.sample(episodes, min(VIDEO_LENGTH, len(episodes)))
            numbers = [frames.near_grasp(episode, 0) for episode in some]
            start = len(numbers) // 2 if from_middle else 0
            _follow(model, frames, numbers, gripper, start, "gripper, discrete videos", found)
        for episode in episodes[:6]:
            target = frames.label_of(episode.target)
            begin = episode.first + max(0, min(episode.grasp_step - 4, episode.steps - VIDEO_LENGTH))
            numbers = list(range(begin, begin + VIDEO_LENGTH))
            _follow(model, frames, numbers, gripper, 0, "gripper, 5 Hz", found)
            _follow(model, frames, numbers[::-1], gripper, 0, "gripper, 5 Hz backwards", found)
            _follow(model, frames, numbers, target, 0, "target, 5 Hz around the grasp", found)
            whole = list(range(episode.first, episode.first + episode.steps))
            _follow(model, frames, whole, target, 0, "target, whole episodes", found)
            strange = [other for other in others if not frames.areas[other.first, target]]
            if strange:
                numbers = [*whole[:3], draw.choice(strange).first, whole[3]]
                _follow(model, frames, numbers, target, 0, "target, one frame of another scene", found)
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(found.items())}


def _follow(
    model: Sam2VideoModel,
    frames: Frames,
    numbers: Sequence[int],
    label: int,
    start: int,
    name: str,
    found: dict[str, list[float]],
) -> None:
    """Track one object from a true box on frame `start`, both ways, and note what was reached on the other frames."""
    images, labels = frames.images[list(numbers)], frames.labels[list(numbers)]
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
            truth = labels[output.frame_idx] == label
            mask = (upsample(output.pred_masks)[0, 0] > 0).numpy()
            if truth.sum() >= SMALLEST:
                found[f"{name}: mask IoU"].append(_iou(mask, truth))
                found[f"{name}: seen where it is"].append(float(mask.any()))
            elif not truth.any():
                found[f"{name}: not seen where it is not"].append(float(not mask.any()))


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, default=Path("annotate/annotators/tiny"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(arguments.checkpoints, Frames.load(arguments.frames)), indent=1))


if __name__ == "__main__":
    main()
