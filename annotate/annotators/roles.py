"""The three roles of the annotation and what passes between them; who fills a role is chosen by the settings.

Each role sees a group of candidates at once: episodes of one source file and one viewpoint, so that a model can batch
over them and a tracker can carry the gripper's look from episode to episode.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from annotate.annotators.motion import Keyframes, Motion
from annotate.settings import MotionSettings
from annotate.sources.episode import Episode
from pixel160k.format.table import Box, Detection


@dataclass(frozen=True)
class Candidate:
    """An episode whose gripper closes, with its decoded keyframes."""

    episode: Episode
    keyframes: Keyframes
    settings: MotionSettings

    @cached_property
    def motion(self) -> Motion:
        """What motion says of it, computed once."""
        return Motion(self.keyframes, self.settings)


@dataclass(frozen=True)
class Gripper:
    """The gripper on the close frame: xyxy box in pixels and mask, bool (height, width)."""

    box: Box
    mask: np.ndarray


@dataclass(frozen=True)
class FoundObject:
    """The target on the first frame: candidate boxes, best first, and the mask of the best, bool (height, width).

    Where there is no mask, `detail` may say why. `mask_score` is the annotator's own estimate of the mask's quality.
    """

    detections: list[Detection] = field(default_factory=list)
    mask: np.ndarray | None = None
    mask_score: float = 0.0
    detail: str = ""


class GripperFinder(Protocol):
    """Finds the gripper on each candidate's close frame."""

    def find_grippers(self, candidates: Sequence[Candidate]) -> list[Gripper | None]:
        """One answer a candidate, None where it was not found."""
        ...


class TargetNamer(Protocol):
    """Names the object that is grasped first."""

    def name_targets(self, instructions: Sequence[str]) -> list[str]:
        """One noun phrase an instruction, lower-case, without determiner; "" where none is named."""
        ...


class ObjectFinder(Protocol):
    """Finds and cuts out the target on each candidate's first frame."""

    def find_objects(
        self, candidates: Sequence[Candidate], regions: Sequence[Box], targets: Sequence[str]
    ) -> list[FoundObject]:
        """One answer a candidate; regions are xyxy boxes in pixels of the first frame."""
        ...
