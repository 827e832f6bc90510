"""Gripper and object from motion alone, in the roles of roles.py."""

from collections.abc import Sequence

import numpy as np

from annotate.annotators.roles import FoundObject, Gripper, KeyframedEpisode
from pixel160k.format import masks
from pixel160k.format.table import Box, Detection


class MotionGripperFinder:
    """The gripper is the arm's end at the close."""

    def find_grippers(self, groups: Sequence[Sequence[KeyframedEpisode]]) -> list[list[Gripper | None]]:
        """For each group one answer per episode; see `Motion.gripper`."""
        found = [[episode.motion.gripper() for episode in group] for group in groups]
        return [[None if gripper is None else Gripper(*gripper) for gripper in group] for group in found]


class MotionObjectFinder:
    """The target is what was carried away from near the gripper; the noun plays no part."""

    def __init__(self, detections: int) -> None:
        """Keep up to `detections` candidate boxes per episode."""
        self._detections = detections

    def find_objects(
        self, episodes: Sequence[KeyframedEpisode], regions: Sequence[Box], targets: Sequence[str]
    ) -> list[FoundObject]:
        """One answer per episode; see `Motion.moved_objects` and `Motion.outline`."""
        return [self._find(episode, region) for episode, region in zip(episodes, regions, strict=True)]

    def _find(self, keyframed: KeyframedEpisode, region: Box) -> FoundObject:
        motion = keyframed.motion
        # A driving base moves the camera with it.
        if unusable := "the robot's base drives" if keyframed.episode.base_moves else motion.unusable:
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
