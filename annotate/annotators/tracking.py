"""Masks of object and gripper at every step of an episode (the paper's p_t), by SAM 2's video memory.

The object starts from its mask on the first valid frame, the gripper from its mask on the close frame. Both are followed
forwards and backwards, so that the steps before and after have a mask too.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress

import numpy as np

from annotate.ahead import ahead
from annotate.annotators.lanes import Video
from annotate.annotators.mask_cleaning import tidy
from annotate.annotators.segmenter import Segment, Segmenter
from annotate.sources.episode import BadImage, Episode
from pixel160k.format import masks
from pixel160k.format.masks import RLE
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.format.tracks import StepMasks


def track_episodes(
    episodes: Sequence[Episode], rows: Sequence[EpisodeAnnotation], segmenter: Segmenter
) -> list[list[StepMasks]]:
    """Follow what each row has a mask of, over all raw steps; nothing where it has none.

    A step whose frame is broken, or of another size, has no masks: objects are followed from the sound frame before it to the
    next one.
    """
    starts = [_starts(row) for row in rows]
    sound: list[tuple[int, list[int]]] = []  # per video the index of its episode, and the raw steps of its frames

    def videos() -> Iterator[Video]:
        for index, episode in enumerate(episodes):
            if starts[index]:
                frames = _sound_frames(episode)
                steps = list(frames)
                sound.append((index, steps))
                prompts = [(steps.index(step), masks.decode(mask)) for step, mask in starts[index].values()]
                yield Video(list(frames.values()), prompts)

    tracks: list[list[StepMasks]] = [[] for _ in episodes]
    # While a GPU follows some videos, a thread decodes the next.
    with closing(ahead(videos(), segmenter.videos_ahead)) as decoded:
        for number, followed in enumerate(segmenter.follow(decoded)):
            index, seen = sound[number]
            unknown: list[tuple[RLE | None, bool]] = [(None, False)] * episodes[index].num_steps
            found = {
                name: _step_masks(segments, seen, episodes[index].num_steps, *start)
                for (name, start), segments in zip(starts[index].items(), followed, strict=True)
            }
            objects, grippers = found.get("object", unknown), found.get("gripper", unknown)
            steps = zip(objects, grippers, strict=True)
            tracks[index] = [
                StepMasks(rows[index].episode_id, step, *one, *other) for step, (one, other) in enumerate(steps)
            ]
    return tracks


def _sound_frames(episode: Episode) -> dict[int, np.ndarray]:
    """The frames, by their raw steps, that decode and have the size of the first valid one."""
    frames = {}
    for step in range(episode.num_steps):
        with suppress(BadImage):
            frames[step] = episode.frame(step)
    size = frames[episode.first_step].shape
    return {step: frame for step, frame in frames.items() if frame.shape == size}


def _starts(row: EpisodeAnnotation) -> dict[str, tuple[int, RLE]]:
    """For "object" and "gripper", where the row has a mask of it: the raw step of that mask, and the mask."""
    found = {"object": (row.first_step, row.object_mask), "gripper": (row.close_step, row.gripper_mask)}
    return {name: (step, mask) for name, (step, mask) in found.items() if mask is not None}


def _step_masks(
    segments: Sequence[Segment], seen: Sequence[int], num_steps: int, start: int, mask: RLE
) -> list[tuple[RLE | None, bool]]:
    """Per raw step the tracked mask, empty where the object is not visible, and whether it is; None where not `seen`."""
    followed: list[tuple[RLE | None, bool]] = [(None, False)] * num_steps
    for step, segment in zip(seen, segments, strict=True):
        clean = tidy(segment.seen)
        followed[step] = masks.encode(clean), bool(clean.any())
    followed[start] = (mask, True)  # where it started from, as it was found
    return followed
