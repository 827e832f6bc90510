"""The last stage: accept a row, or reject it with one reason.

It reads the stored columns alone, so it can be repeated without the models.
"""

import dataclasses

from annotate.settings import FilterSettings
from pixel160k.format import masks, table
from pixel160k.format.table import EpisodeAnnotation


def accept(row: EpisodeAnnotation, settings: FilterSettings) -> EpisodeAnnotation:
    """A copy of the row that is accepted, or rejected with the first reason that holds in the order of the stages.

    The evidence in it is judged anew by `settings.min_evidence`. A failed row (its data could not be read) stays as it is.
    """
    if row.status == table.FAILED and row.reason:
        return row
    row = dataclasses.replace(row, evidence=row.evidence.judged(settings.min_evidence))
    reason = _reason(row, settings)
    return dataclasses.replace(row, status=table.REJECTED if reason else table.ACCEPTED, reason=reason)


def _reason(row: EpisodeAnnotation, settings: FilterSettings) -> str:
    if row.last_step <= row.first_step:
        return "too_short"
    if row.close_step < 0:
        return "failed_grasp" if row.close_steps else "no_gripper_close"
    if not row.instruction:
        return "no_instruction"
    if not row.target_object:
        return "no_target_object"
    if row.gripper_mask is None:
        return "gripper_not_found"
    if row.region_box is None:
        return "camera_moved"
    x0, y0, x1, y1 = row.region_box
    if (x1 - x0) * (y1 - y0) > settings.max_region_area * row.image_height * row.image_width:
        return "region_too_large"
    if row.object_mask is None:
        return "not_detected"
    supported = row.evidence.status == table.SUPPORTED
    min_score = settings.min_supported_score if supported else settings.min_detection_score
    if row.detection_score < min_score or row.mask_score < settings.min_mask_score:
        return "low_confidence"
    mask = masks.decode(row.object_mask)
    if mask.mean() < settings.min_mask_area:
        return "mask_too_small"
    if mask.mean() > settings.max_mask_area:
        return "mask_too_large"
    if mask[masks.inside_box(row.region_box, *mask.shape)].sum() < settings.min_inside_region * mask.sum():
        return "outside_region"
    if row.evidence.status == table.CONTRADICTED:
        return "contradicted_by_motion"
    if row.evidence.coverage < settings.min_coverage:
        return "mask_incomplete"
    return ""
