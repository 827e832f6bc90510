"""Which of several candidates is the target: by the detector's score, by nearness to the gripper, by what left its place.

A detector knows words, not which of two alike things is meant. The gripper closes around the one that is meant, and that one
leaves its place afterwards. Each says something where the others are silent: the score where motion is unusable and
things stand close together, nearness where nothing is carried away, motion where alike things stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from annotate.annotators.motion import Motion
from annotate.annotators.regions import box_iou, centre_of
from annotate.settings import ChoiceSettings
from pixel160k.format import masks
from pixel160k.format.table import Box, Detection, Point


@dataclass(frozen=True)
class Candidate:
    """A detected box with what was cut out of it: the mask, bool (height, width) of the frame, and its score."""

    detection: Detection
    mask: np.ndarray
    mask_score: float


def distinct(detections: Sequence[Detection], overlap: float, count: int) -> list[Detection]:
    """The first `count` boxes that overlap no earlier one by more than this IoU: a detector often sees a thing twice."""
    kept: list[Detection] = []
    for one in detections:
        if len(kept) < count and all(box_iou(one.box, other.box) <= overlap for other in kept):
            kept.append(one)
    return kept


def fingers_end(gripper: Box, entry: Point | np.ndarray | None) -> Point:
    """Where the fingers end: the middle of that side of the gripper's box that lies away from where the arm enters the image.

    Both are x, y in pixels. Without an entry it is the box's centre.
    """
    x, y = centre_of(gripper)
    if entry is None:
        return x, y
    x0, y0, x1, y1 = gripper
    if abs(y - entry[1]) * (x1 - x0) >= abs(x - entry[0]) * (y1 - y0):  # the arm's line leaves the box above or below
        return x, (y1 if y >= entry[1] else y0)
    return (x1 if x >= entry[0] else x0), y


def nearness(mask: np.ndarray, point: Point, settings: ChoiceSettings) -> float:
    """How near the middle of a mask's box is to a point x, y, in pixels of the mask's frame, weighted: the weight is the most."""
    x, y = centre_of(masks.box_of(mask))
    distance = np.hypot(x - point[0], y - point[1]) / (settings.nearness * len(mask))
    return settings.nearness_weight * float(np.exp(-(distance**2)))


def ranked(
    candidates: Sequence[Candidate], fingers: Point, motion: Motion | None, settings: ChoiceSettings
) -> list[Candidate]:
    """The candidates, the best first; equally good ones stay in their order, and those whose mask is empty come last.

    Args:
        candidates: of one frame.
        fingers: where the fingers were when they closed, x, y in pixels of that frame.
        motion: of the episode; None where it says nothing, and the other two decide.
        settings: the weights.
    """

    def merit(candidate: Candidate) -> float:
        if not candidate.mask.any():
            return -1.0
        total = candidate.detection.score + nearness(candidate.mask, fingers, settings)
        if motion is not None:
            total += settings.motion_weight * masks.iou(candidate.mask, motion.moved_with(candidate.mask))
        return total

    return sorted(candidates, key=merit, reverse=True)
