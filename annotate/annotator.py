"""The episodes of one source file in, their rows out: the stages of the paper's Fig. 6 in their order.

gripper close -> gripper mask -> region proposal -> target noun -> object mask -> motion evidence -> accept -> prompts.
Every stage stores what it found; only `accept` decides. Episodes go through in groups of one viewpoint, of the size that
the gripper finder wants, so that no more than a group's keyframes are ever in memory.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from annotate.accept import accept
from annotate.episode import BadImage, Episode
from annotate.motion import decode_keyframes, expand_box
from annotate.roles import Candidate, FoundObject, Gripper, GripperFinder, ObjectFinder, TargetNamer
from annotate.settings import AnnotateSettings
from annotate.stages import Stages
from annotate.target_object import verb_class
from pixel160k import masks, table
from pixel160k.prompts import sample_prompts, seeded_generator
from pixel160k.table import EpisodeAnnotation, Evidence
from pixel160k.tracks import StepMasks

Tracker = Callable[[Sequence[Episode], Sequence[EpisodeAnnotation]], list[list[StepMasks]]]
"""Follows what the rows have a mask of through their episodes."""


@dataclass(frozen=True)
class Annotators:
    """Who fills the three roles, and how many episodes of one viewpoint they want to see at once."""

    gripper: GripperFinder
    target: TargetNamer
    object: ObjectFinder
    group_size: int
    region_expansion: float  # the gripper box is scaled by this to propose a region
    stages: Stages  # where the time goes
    track: Tracker | None = None  # masks at every step, if wanted


def annotate_episodes(
    items: Iterable[Episode | EpisodeAnnotation], annotators: Annotators, settings: AnnotateSettings
) -> tuple[list[EpisodeAnnotation], list[StepMasks]]:
    """Annotate the episodes of one file, in their order; failed rows among them pass through.

    Never raises for bad data, which gives a failed or rejected row with its reason.

    Returns:
        The rows, and the tracks of those that have a mask (none where the annotators do not track).
    """
    rows: list[EpisodeAnnotation] = []
    tracks: dict[int, list[StepMasks]] = {}
    waiting: dict[str, list[tuple[int, Candidate]]] = defaultdict(list)

    def annotate_group(group: list[tuple[int, Candidate]]) -> None:
        places, candidates = zip(*group, strict=True)
        found = _annotate([rows[place] for place in places], candidates, annotators, settings)
        for place, row in zip(places, found, strict=True):
            rows[place] = row
        if annotators.track is not None:
            with annotators.stages("tracks"):
                followed = annotators.track([candidate.episode for candidate in candidates], found)
            tracks.update(zip(places, followed, strict=True))

    with annotators.stages("read"):
        for item in items:
            if isinstance(item, EpisodeAnnotation):
                rows.append(item)
                continue
            with annotators.stages("target noun"):
                (target,) = annotators.target.name_targets([item.instruction])
            row, candidate = _begin(item, target, settings)
            rows.append(row)
            if candidate is not None:
                group = waiting[item.viewpoint]
                group.append((len(rows) - 1, candidate))
                if len(group) == annotators.group_size:
                    annotate_group(waiting.pop(item.viewpoint))
        for group in waiting.values():
            annotate_group(group)
    return rows, [step for place in sorted(tracks) for step in tracks[place]]


def _begin(episode: Episode, target: str, settings: AnnotateSettings) -> tuple[EpisodeAnnotation, Candidate | None]:
    """The row of an episode before any annotator has seen it, and the candidate if there is anything to annotate."""
    row = EpisodeAnnotation(
        **dataclasses.asdict(episode.identity),
        native_id=episode.native_id,
        camera=episode.camera,
        instruction=episode.instruction,
        verb=verb_class(episode.instruction),
        num_steps=episode.num_steps,
        first_step=episode.first_step,
        last_step=episode.last_step,
        close_step=episode.close_step,
        target_object=target,
    )
    if episode.first_step > episode.last_step:
        return accept(row, settings.filter), None
    try:
        initial = episode.frame(episode.first_step)
        row = dataclasses.replace(row, image_height=initial.shape[0], image_width=initial.shape[1])
        if row.close_step < 0:
            return accept(row, settings.filter), None
        return row, Candidate(episode, decode_keyframes(episode, settings, initial), settings.motion)
    except BadImage as error:
        return dataclasses.replace(row, status=table.FAILED, reason="bad_image", detail=str(error)), None


def _annotate(
    rows: Sequence[EpisodeAnnotation],
    candidates: Sequence[Candidate],
    annotators: Annotators,
    settings: AnnotateSettings,
) -> list[EpisodeAnnotation]:
    """Take a group of one viewpoint through the stages."""
    stages = annotators.stages
    with stages("gripper"):
        grippers = annotators.gripper.find_grippers(candidates)
    regions = [
        None if gripper is None else expand_box(gripper.box, annotators.region_expansion, *gripper.mask.shape)
        for gripper in grippers
    ]
    # Without a region there is nowhere to look; without a noun, `motion` can still look, and the models are not asked.
    ready = [place for place, region in enumerate(regions) if region is not None]
    with stages("object"):
        found = annotators.object.find_objects(
            [candidates[place] for place in ready],
            [region for region in regions if region is not None],
            [rows[place].target_object for place in ready],
        )
    objects = dict(zip(ready, found, strict=True))
    with stages("evidence and filter"):
        return [
            _finish(
                dataclasses.replace(row, region_box=region),
                candidate,
                gripper,
                objects.get(place, FoundObject()),
                settings,
            )
            for place, (row, candidate, gripper, region) in enumerate(
                zip(rows, candidates, grippers, regions, strict=True)
            )
        ]


def _finish(
    row: EpisodeAnnotation,
    candidate: Candidate,
    gripper: Gripper | None,
    found: FoundObject,
    settings: AnnotateSettings,
) -> EpisodeAnnotation:
    """Store what was found, ask motion whether it agrees, accept or reject, sample prompts."""
    if gripper is not None:
        row = dataclasses.replace(row, gripper_box=gripper.box, gripper_mask=masks.encode(gripper.mask))
    row = dataclasses.replace(row, detections=found.detections, detail=found.detail)
    if found.mask is None:
        return accept(row, settings.filter)
    # What is opened, turned, pushed or wiped need not leave its place; a driving base moves the camera.
    applicable = row.verb == "pick_place" and not candidate.episode.base_moves
    row = dataclasses.replace(
        row,
        object_box=masks.box_of(found.mask),
        detection_score=found.detections[0].score,
        object_mask=masks.encode(found.mask),
        mask_score=found.mask_score,
        evidence=candidate.motion.evidence(found.mask, settings.filter.min_evidence) if applicable else Evidence(),
    )
    generator = seeded_generator("prompts", settings.prompts.seed, row.episode_id)
    prompts = sample_prompts(found.mask, settings.prompts.points, generator)
    return accept(dataclasses.replace(row, prompts=prompts), settings.filter)
