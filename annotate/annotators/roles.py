"""The three roles of the annotation and what passes between them; who fills a role is chosen by the settings.

Each role sees several episodes of one source file at once, so that a model can take them as one batch. The finder of
grippers sees them in groups, of one viewpoint where there are enough, so that a tracker can carry the gripper's look from
one to the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from annotate.annotators.keyframes import Keyframes
from annotate.annotators.motion import Motion
from annotate.settings import MotionSettings
from annotate.sources.episode import Episode
from pixel160k.format.table import Box, Detection


@dataclass(frozen=True)
class KeyframedEpisode:
    """An episode whose gripper closes, with its decoded keyframes."""

    episode: Episode
    keyframes: Keyframes
    settings: MotionSettings

    @cached_property
    def motion(self) -> Motion:
        """The change maps of the episode, computed at the first use."""
        return Motion(self.keyframes, self.settings)


@dataclass(frozen=True)
class Gripper:
    """The gripper on the close frame: xyxy box in pixels and mask, bool (height, width)."""

    box: Box
    mask: np.ndarray


@dataclass(frozen=True)
class FoundObject:
    """The target on the first valid frame: candidate boxes, the chosen one first, and its mask, bool (height, width).

    Where there is no mask, `detail` may say why. `part` is the part of the target that they show, "" for all of it. `mask_score` is the annotator's own estimate of the mask's quality.
    """

    detections: list[Detection] = field(default_factory=list)
    mask: np.ndarray | None = None
    mask_score: float = 0.0
    detail: str = ""
    part: str = ""


class GripperFinder(Protocol):
    """Finds the gripper on each episode's close frame."""

    def find_grippers(self, groups: Sequence[Sequence[KeyframedEpisode]]) -> list[list[Gripper | None]]:
        """For each group, whose frames make one discrete video, one answer per episode; None where no gripper was found."""
        ...


class TargetNamer(Protocol):
    """Names the object that is grasped first."""

    def name_targets(self, instructions: Sequence[str]) -> list[str]:
        """One noun phrase per instruction, lower-case, without determiner; "" where none is named."""
        ...


class ObjectFinder(Protocol):
    """Finds the target on each episode's first valid frame and makes its mask."""

    def find_objects(
        self,
        episodes: Sequence[KeyframedEpisode],
        grippers: Sequence[Gripper],
        regions: Sequence[Box],
        targets: Sequence[str],
    ) -> list[FoundObject]:
        """One answer per episode.

        Args:
            episodes: of one viewpoint or several.
            grippers: per episode the gripper that closes around the target.
            regions: per episode where to look: a box xyxy in pixels of the first valid frame.
            targets: per episode the noun phrase to look for; "" where the instruction names none.
        """
        ...
