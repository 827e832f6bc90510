"""One episode in, one row out: the stages of the paper's Fig. 6 in their order.

gripper close -> gripper mask -> region proposal -> target noun -> object mask -> motion evidence -> accept -> prompts.
Every stage stores what it found; only `accept` decides. The three roles (gripper masks, target noun, object masks) are
filled by the annotators that the settings name; here `motion` and the verb-pattern grammar.
"""

import dataclasses

import numpy as np

from annotate.accept import accept
from annotate.episode import BadImage, Episode
from annotate.motion import Motion, decode_keyframes, expand_box
from annotate.settings import AnnotateSettings
from annotate.target_object import target_object, verb_class
from pixel160k import masks, table
from pixel160k.prompts import sample_prompts, seeded_generator
from pixel160k.table import Detection, EpisodeAnnotation, Evidence


def annotate_episode(episode: Episode, settings: AnnotateSettings) -> EpisodeAnnotation:
    """Annotate one episode; never raises for bad data, which gives a failed row with its reason."""
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
        target_object=target_object(episode.instruction),
    )
    if episode.first_step > episode.last_step:
        return accept(row, settings.filter)
    try:
        initial = episode.frame(episode.first_step)
        row = dataclasses.replace(row, image_height=initial.shape[0], image_width=initial.shape[1])
        if row.close_step >= 0:
            row = _annotate_motion(row, Motion(decode_keyframes(episode, settings), settings.motion), episode, settings)
    except BadImage as error:
        return dataclasses.replace(row, status=table.FAILED, reason="bad_image", detail=str(error))
    row = accept(row, settings.filter)
    if row.object_mask is not None:
        generator = seeded_generator("prompts", settings.prompts.seed, row.episode_id)
        prompts = sample_prompts(masks.decode(row.object_mask), settings.prompts.points, generator)
        row = dataclasses.replace(row, prompts=prompts)
    return row


def _annotate_motion(
    row: EpisodeAnnotation, motion: Motion, episode: Episode, settings: AnnotateSettings
) -> EpisodeAnnotation:
    """Fill the gripper's, the object's and the evidence's columns from motion alone."""
    gripper = motion.gripper()
    if gripper is None:
        return row
    box, mask = gripper
    region = expand_box(box, settings.region_expansion, motion.height, motion.width)
    row = dataclasses.replace(row, gripper_box=box, gripper_mask=masks.encode(mask), region_box=region)
    # A driving base moves the camera, and what is opened, turned, pushed or wiped need not leave its place.
    if unusable := "the robot's base drives" if episode.base_moves else motion.unusable:
        return dataclasses.replace(row, detail=unusable)
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    candidates = motion.moved_objects(near=centre)[: settings.detections]
    if not candidates:
        return row
    total = sum(weight for weight, _ in candidates)
    detections = [Detection(masks.box_of(region_mask), weight / total) for weight, region_mask in candidates]
    seed = candidates[0][1]
    outline = motion.outline(seed)
    return dataclasses.replace(
        row,
        detections=detections,
        object_box=masks.box_of(outline),
        detection_score=detections[0].score,
        object_mask=masks.encode(outline),
        mask_score=masks.iou(seed, outline),  # how far the outline agrees with the motion that it was grown from
        evidence=motion.evidence(outline, settings.filter.min_evidence) if row.verb == "pick_place" else Evidence(),
    )
