"""p_t: the object and the gripper followed through every step of an episode by SAM 2's video memory.

The object starts from its mask on the first valid frame, the gripper from its mask on the close frame; both are followed
both ways, so that steps before and after have a mask too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from annotate.annotators.segmenter import Segmenter, tidy
from annotate.sources.episode import BadImage, Episode
from pixel160k.format import masks
from pixel160k.format.masks import RLE
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.format.tracks import StepMasks

_VISIBLE = 0.5  # SAM 2 itself counts an object as present from here on


class _Frames(Sequence[np.ndarray]):
    """The frames of an episode, decoded when they are asked for, so that a long episode takes no more memory."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode

    def __len__(self) -> int:
        return self._episode.num_steps

    def __getitem__(self, step: Any) -> Any:
        return self._episode.frame(step)


def track_episode(episode: Episode, row: EpisodeAnnotation, segmenter: Segmenter) -> list[StepMasks]:
    """Follow what the row has a mask of, over all raw steps; nothing where it has none or where a frame is broken."""
    if row.object_mask is None and row.gripper_mask is None:
        return []
    try:
        objects = _follow(episode, row.first_step, row.object_mask, segmenter)
        grippers = _follow(episode, row.close_step, row.gripper_mask, segmenter)
    except BadImage:
        return []  # counted by build-shards, which leaves the whole episode out for the same frame
    return [StepMasks(row.episode_id, step, *objects[step], *grippers[step]) for step in range(episode.num_steps)]


def _follow(episode: Episode, start: int, mask: RLE | None, segmenter: Segmenter) -> list[tuple[RLE | None, bool]]:
    """Per raw step the tracked mask, empty where the object is not visible, and whether it is."""
    if mask is None:
        return [(None, False)] * episode.num_steps
    followed: list[tuple[RLE | None, bool]] = []
    for segment in segmenter.track(_Frames(episode), start, masks.decode(mask)):
        clean = tidy(segment.mask) if segment.score >= _VISIBLE else np.zeros_like(segment.mask)
        followed.append((masks.encode(clean), bool(clean.any())))
    followed[start] = (mask, True)  # where it started from, as it was found
    return followed
