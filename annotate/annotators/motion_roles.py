"""The weightless annotators in their roles: gripper and object from motion, the noun from the grammar."""

from collections.abc import Sequence

import numpy as np

from annotate.annotators.grammar import target_object
from annotate.annotators.roles import Candidate, FoundObject, Gripper
from pixel160k.format import masks
from pixel160k.format.table import Box, Detection


class MotionGripperFinder:
    """The gripper is the arm's end at the close."""

    def find_grippers(self, candidates: Sequence[Candidate]) -> list[Gripper | None]:
        """See `Motion.gripper`."""
        found = [candidate.motion.gripper() for candidate in candidates]
        return [None if gripper is None else Gripper(*gripper) for gripper in found]


class MotionObjectFinder:
    """The target is what left its place near the gripper; the noun plays no part."""

    def __init__(self, detections: int) -> None:
        """Keep up to so many candidate regions an episode."""
        self._detections = detections

    def find_objects(
        self, candidates: Sequence[Candidate], regions: Sequence[Box], targets: Sequence[str]
    ) -> list[FoundObject]:
        """See `Motion.moved_objects` and `Motion.outline`."""
        return [self._find(candidate, region) for candidate, region in zip(candidates, regions, strict=True)]

    def _find(self, candidate: Candidate, region: Box) -> FoundObject:
        motion = candidate.motion
        # A driving base moves the camera with it.
        if unusable := "the robot's base drives" if candidate.episode.base_moves else motion.unusable:
            return FoundObject(detail=unusable)
        centre = np.array([(region[0] + region[2]) / 2, (region[1] + region[3]) / 2])
        moved = motion.moved_objects(near=centre)[: self._detections]
        if not moved:
            return FoundObject()
        total = sum(weight for weight, _ in moved)
        detections = [Detection(masks.box_of(mask), weight / total) for weight, mask in moved]
        outline = motion.outline(moved[0][1])
        # The mask's score is how far the outline agrees with the motion that it was grown from.
        return FoundObject(detections, outline, masks.iou(moved[0][1], outline))


class GrammarNamer:
    """The verb-pattern grammar as a namer."""

    def name_targets(self, instructions: Sequence[str]) -> list[str]:
        """See `target_object`."""
        return [target_object(instruction) for instruction in instructions]
