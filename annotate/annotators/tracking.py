"""p_t: the object and the gripper followed through every step of an episode by SAM 2's video memory.

The object starts from its mask on the first valid frame, the gripper from its mask on the close frame; both are followed
both ways, so that steps before and after have a mask too.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from annotate.annotators.lanes import Video
from annotate.annotators.mask_cleaning import tidy
from annotate.annotators.segmenter import Segment, Segmenter
from annotate.sources.episode import BadImage, Episode
from pixel160k.format import masks
from pixel160k.format.masks import RLE
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.format.tracks import StepMasks

_VISIBLE = 0.5  # SAM 2 itself counts an object as present from here on


def track_episodes(
    episodes: Sequence[Episode], rows: Sequence[EpisodeAnnotation], segmenter: Segmenter
) -> list[list[StepMasks]]:
    """Follow what each row has a mask of, over all raw steps; nothing where it has none or where a frame is broken.

    A broken frame is counted by build-shards, which leaves the whole episode out for it.
    """
    starts = [_starts(row) for row in rows]
    sound: list[int] = []

    def videos() -> Iterator[Video]:
        for index, episode in enumerate(episodes):
            if starts[index]:
                try:
                    frames = [episode.frame(step) for step in range(episode.num_steps)]
                except BadImage:
                    continue
                sound.append(index)
                yield Video(frames, [(step, masks.decode(mask)) for step, mask in starts[index].values()])

    tracks: list[list[StepMasks]] = [[] for _ in episodes]
    for number, followed in enumerate(segmenter.follow(videos())):
        index = sound[number]
        unknown: list[tuple[RLE | None, bool]] = [(None, False)] * episodes[index].num_steps
        found = {
            name: _step_masks(segments, *start)
            for (name, start), segments in zip(starts[index].items(), followed, strict=True)
        }
        objects, grippers = found.get("object", unknown), found.get("gripper", unknown)
        steps = zip(objects, grippers, strict=True)
        tracks[index] = [
            StepMasks(rows[index].episode_id, step, *one, *other) for step, (one, other) in enumerate(steps)
        ]
    return tracks


def _starts(row: EpisodeAnnotation) -> dict[str, tuple[int, RLE]]:
    """What a row has a mask of -> the raw step of that mask, and the mask."""
    found = {"object": (row.first_step, row.object_mask), "gripper": (row.close_step, row.gripper_mask)}
    return {name: (step, mask) for name, (step, mask) in found.items() if mask is not None}


def _step_masks(segments: Sequence[Segment], start: int, mask: RLE) -> list[tuple[RLE | None, bool]]:
    """Per raw step the tracked mask, empty where the object is not visible, and whether it is."""
    followed: list[tuple[RLE | None, bool]] = []
    for segment in segments:
        clean = tidy(segment.mask) if segment.score >= _VISIBLE else np.zeros_like(segment.mask)
        followed.append((masks.encode(clean), bool(clean.any())))
    followed[start] = (mask, True)  # where it started from, as it was found
    return followed
