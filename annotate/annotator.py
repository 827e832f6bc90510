"""Annotates the episodes of one source file: takes episodes, returns table rows.

The stages are those of the paper's Fig. 6, in their order:
gripper close -> gripper mask -> region proposal -> target noun -> object mask -> motion evidence -> accept -> prompts.
Every stage stores what it found; only `accept` decides. Episodes, of one viewpoint where there are enough, go through the
stages in groups, of the size that the gripper finder wants, and several groups together where a GPU takes them as one
batch. There a thread reads and decodes ahead. So a bounded number of episodes has its keyframes in memory: those read ahead,
those that wait for others of their viewpoint, and those at work.

A bug that an episode meets costs that episode: a failed row, `internal_error`. Groups that fail together are done again
one by one, and then the episodes of the one that fails alone.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

from annotate.accept import accept
from annotate.ahead import ahead
from annotate.annotators.grammar import read
from annotate.annotators.grasps import holding_grasp
from annotate.annotators.regions import propose_region, shift_box
from annotate.annotators.roles import FoundObject, Gripper, GripperFinder, KeyframedEpisode, ObjectFinder, TargetNamer
from annotate.annotators.touched import stays_in_place
from annotate.faults import LOGGER, internal_error, is_of_the_device
from annotate.groups import batched, grouped
from annotate.settings import AnnotateSettings
from annotate.sources.episode import BadImage, Episode
from annotate.timing import Stopwatch
from pixel160k.format import masks, table
from pixel160k.format.prompts import sample_prompts
from pixel160k.format.table import Box, EpisodeAnnotation, Evidence
from pixel160k.format.tracks import StepMasks
from pixel160k.seeding import seeded_generator

Tracker = Callable[[Sequence[Episode], Sequence[EpisodeAnnotation]], list[list[StepMasks]]]
"""Follows the objects and grippers of rows through their episodes: for each episode one `StepMasks` per raw step."""


_NO_LOCK = nullcontext()
_WAITING = 32  # episodes that wait for others of their viewpoint, at most; each holds a few MB


@dataclass(frozen=True)
class Annotators:
    """Who fills the three roles, and how many episodes of one viewpoint they want to see at once (`group_size`)."""

    gripper: GripperFinder
    target: TargetNamer
    object: ObjectFinder
    group_size: int
    region_expansion: float  # the region's side, in longer sides of the gripper's box
    stopwatch: Stopwatch  # measures the seconds per stage
    track: Tracker | None = None  # masks at every step, if wanted
    lock: AbstractContextManager[Any] = _NO_LOCK  # held while a model is used: one thread at a time
    together: int = 1  # groups go through the stages together until they hold so many episodes
    ahead: int = 0  # episodes that a thread reads and decodes while others are at work


@dataclass(frozen=True)
class _Decoded:
    """What is made of an episode before a model sees it: its keyframes if a grasp holds, or the error met on the way."""

    episode: Episode
    size: tuple[int, int] = (0, 0)  # height and width of the frames, in pixels
    keyframed: KeyframedEpisode | None = None
    error: Exception | None = None


def annotate_episodes(
    items: Iterable[Episode | EpisodeAnnotation], annotators: Annotators, settings: AnnotateSettings
) -> tuple[list[EpisodeAnnotation], list[StepMasks]]:
    """Annotate the episodes of one source file.

    Neither bad data nor a bug raises: they give a failed or rejected row with its reason. What remains is the fault of no
    episode: a source file that cannot be read, an accelerator that does nothing more.

    Args:
        items: the episodes; a row among them is a record that could not be read, and is returned as it is.
        annotators: who finds gripper, noun and object.
        settings: those from which the annotators were chosen.

    Returns:
        One row per item, in the order of the items, and the masks of every raw step of the episodes that have a mask (no
        such masks where the annotators do not track).
    """
    rows: list[EpisodeAnnotation] = []
    tracks: dict[int, list[StepMasks]] = {}

    def begun(decoded: Iterable[_Decoded | EpisodeAnnotation]) -> Iterator[tuple[str, tuple[int, KeyframedEpisode]]]:
        """Begin the row of each item; yield those episodes that go on to the stages, each with its viewpoint and place."""
        for item in decoded:
            if isinstance(item, EpisodeAnnotation):
                rows.append(item)
                continue
            row, keyframed = _begin(item, annotators, settings)
            rows.append(row)
            if keyframed is not None:
                yield item.episode.viewpoint, (len(rows) - 1, keyframed)

    def annotate_together(groups: list[list[tuple[int, KeyframedEpisode]]]) -> None:
        indices = [index for group in groups for index, _ in group]
        episodes = [[keyframed for _, keyframed in group] for group in groups]
        try:
            found = _annotate([rows[index] for index in indices], episodes, annotators, settings)
            followed = _track([keyframed for group in episodes for keyframed in group], found, annotators, settings)
        except Exception as error:
            if is_of_the_device(error):
                raise
            if len(indices) > 1:
                LOGGER.warning("%d episodes, done again one by one:", len(indices), exc_info=error)
                smaller = [[group] for group in groups] if len(groups) > 1 else [[[one]] for one in groups[0]]
            else:
                rows[indices[0]], smaller = internal_error(rows[indices[0]], error), []
        else:
            smaller = []
            for index, row, masked in zip(indices, found, followed, strict=True):
                rows[index], tracks[index] = row, masked
        for part in smaller:  # only here is what the exception held let go
            annotate_together(part)

    decoded = (item if isinstance(item, EpisodeAnnotation) else _decode(item, settings) for item in items)
    with annotators.stopwatch("read"), closing(ahead(decoded, annotators.ahead)) as read:
        alone = settings.foundation.min_video_length if settings.foundation.join_scenes else 1
        groups = grouped(begun(read), annotators.group_size, _WAITING, alone)
        for some in batched(groups, annotators.together):
            annotate_together(some)
    return rows, [step for index in sorted(tracks) for step in tracks[index]]


def _decode(episode: Episode, settings: AnnotateSettings) -> _Decoded:
    """Decode the keyframes of an episode, and keep what goes wrong for its row."""
    size = (0, 0)
    try:
        if episode.first_step > episode.last_step:
            return _Decoded(episode)
        initial = episode.frame(episode.first_step)
        size = initial.shape[0], initial.shape[1]
        episode.check_sizes()
        return _Decoded(episode, size, holding_grasp(episode, settings, initial))
    except Exception as error:
        return _Decoded(episode, size, error=error)


def _begin(
    decoded: _Decoded, annotators: Annotators, settings: AnnotateSettings
) -> tuple[EpisodeAnnotation, KeyframedEpisode | None]:
    """The row of an episode before a model looked at an image, and its keyframes if there is anything to annotate."""
    episode = decoded.episode
    row = EpisodeAnnotation(**dataclasses.asdict(episode.identity))
    try:
        with annotators.stopwatch("target noun"), annotators.lock:
            (target,) = annotators.target.name_targets([episode.instruction])
        height, width = decoded.size
        row = dataclasses.replace(_described(episode, target), image_height=height, image_width=width)
        if decoded.error is not None:
            raise decoded.error
        if decoded.keyframed is None:
            return accept(row, settings.filter), None
        return dataclasses.replace(row, close_step=decoded.keyframed.keyframes.grasp.close), decoded.keyframed
    except BadImage as error:
        return dataclasses.replace(row, status=table.FAILED, reason="bad_image", detail=str(error)), None
    except Exception as error:
        if is_of_the_device(error):
            raise
        return internal_error(row, error), None


def _described(episode: Episode, target: str) -> EpisodeAnnotation:
    """The row of an episode with what the source says of it."""
    reading = read(episode.instruction)
    missing = reading.missing or "the language model named nothing that the instruction holds"
    return EpisodeAnnotation(
        **dataclasses.asdict(episode.identity),
        native_id=episode.native_id,
        camera=episode.camera,
        instruction=episode.instruction,
        verb=reading.kind,
        num_steps=episode.num_steps,
        first_step=episode.first_step,
        last_step=episode.last_step,
        close_steps=episode.close_steps,
        target_object=target,
        detail="" if target or not episode.instruction else f"no target: {missing}",
    )


def _annotate(
    rows: Sequence[EpisodeAnnotation],
    groups: Sequence[Sequence[KeyframedEpisode]],
    annotators: Annotators,
    settings: AnnotateSettings,
) -> list[EpisodeAnnotation]:
    """Take groups, each of which makes a discrete video, through the stages together.

    `rows` are those of their episodes, one after another.
    """
    stopwatch = annotators.stopwatch
    episodes = [keyframed for group in groups for keyframed in group]
    with stopwatch("gripper"), annotators.lock:
        grippers = [gripper for group in annotators.gripper.find_grippers(groups) for gripper in group]
        regions = [
            _region(gripper, keyframed, annotators.region_expansion)
            for gripper, keyframed in zip(grippers, episodes, strict=True)
        ]
    # Without a region there is nowhere to look; without a noun, `motion` can still look, and the models are not asked.
    ready = {
        index: (gripper, region)
        for index, (gripper, region) in enumerate(zip(grippers, regions, strict=True))
        if gripper is not None and region is not None
    }
    with stopwatch("object"), annotators.lock:
        found = annotators.object.find_objects(
            [episodes[index] for index in ready],
            [gripper for gripper, _ in ready.values()],
            [region for _, region in ready.values()],
            [rows[index].target_object for index in ready],
        )
    objects = dict(zip(ready, found, strict=True))
    with stopwatch("evidence and filter"):
        return [
            _finish(
                dataclasses.replace(row, region_box=region),
                keyframed,
                gripper,
                objects.get(index, FoundObject(detail=_why_no_region(keyframed))),
                settings,
            )
            for index, (row, keyframed, gripper, region) in enumerate(
                zip(rows, episodes, grippers, regions, strict=True)
            )
        ]


def _region(gripper: Gripper | None, keyframed: KeyframedEpisode, expansion: float) -> Box | None:
    """Where on the first frame to look for the object: around the gripper at the close. The region follows a shaken camera.

    None without a gripper, or where the camera moved farther: then nothing says where that place is on the first frame, or the
    frame does not show it.
    """
    if gripper is None or keyframed.motion.moved_before_close:
        return None
    region = propose_region(shift_box(gripper.box, *keyframed.motion.close_offset), expansion, *gripper.mask.shape)
    return region if region[0] < region[2] and region[1] < region[3] else None


def _why_no_region(keyframed: KeyframedEpisode) -> str:
    if not keyframed.motion.moved_before_close:
        return ""
    return "the robot's base drives" if keyframed.episode.base_moves else "the camera moved before the close"


def _track(
    episodes: Sequence[KeyframedEpisode],
    rows: Sequence[EpisodeAnnotation],
    annotators: Annotators,
    settings: AnnotateSettings,
) -> list[list[StepMasks]]:
    """Per episode the masks of its steps; none where the annotators do not track, or not this row."""
    followed: list[list[StepMasks]] = [[] for _ in rows]
    if annotators.track is None:
        return followed
    wanted = [place for place, row in enumerate(rows) if settings.tracks == "all" or row.status == table.ACCEPTED]
    with annotators.stopwatch("tracks"), annotators.lock:
        found = annotators.track([episodes[place].episode for place in wanted], [rows[place] for place in wanted])
    for place, masked in zip(wanted, found, strict=True):
        followed[place] = masked
    return followed


def _finish(
    row: EpisodeAnnotation,
    keyframed: KeyframedEpisode,
    gripper: Gripper | None,
    found: FoundObject,
    settings: AnnotateSettings,
) -> EpisodeAnnotation:
    """Store what was found, ask motion whether it agrees, accept or reject, sample prompts."""
    if gripper is not None:
        row = dataclasses.replace(row, gripper_box=gripper.box, gripper_mask=masks.encode(gripper.mask))
    detail = found.detail or row.detail
    row = dataclasses.replace(row, detections=found.detections, detail=detail, target_part=found.part)
    if found.mask is None:
        return accept(row, settings.filter)
    if keyframed.episode.base_moves:  # and the camera with it
        evidence = Evidence(why="the robot's base drives")
    elif found.part or stays_in_place(row.verb):
        evidence = Evidence(why="what is opened, turned or wiped is not carried away")
    else:
        evidence = keyframed.motion.evidence(found.mask, settings.filter.min_evidence)
    row = dataclasses.replace(
        row,
        object_box=masks.box_of(found.mask),
        detection_score=found.detections[0].score,
        object_mask=masks.encode(found.mask),
        mask_score=found.mask_score,
        evidence=evidence,
    )
    generator = seeded_generator("prompts", settings.prompts.seed, row.episode_id)
    prompts = sample_prompts(found.mask, settings.prompts.points, generator)
    return accept(dataclasses.replace(row, prompts=prompts), settings.filter)
