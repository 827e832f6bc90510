"""The measures of annotations against the simulator's truth: pure functions of rows, truth and scores.

Masks are compared on the steps on which the shards use them: the object's on the first valid step (x_0), the gripper's on
the close step. A measure that is not defined is None, never 0.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annotate.annotators.regions import propose_region
from pixel160k.errors import InputError
from pixel160k.format import masks, table
from pixel160k.format.table import Box, EpisodeAnnotation
from simulation.truth import GRIPPER, EpisodeTruth

REGION_FACTORS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
GOOD_IOU = 0.5  # a mask with at least this IoU with the target's truth is good


@dataclass(frozen=True)
class EpisodeScore:
    """The measures of one episode's row; None where one is not defined (no mask, no region, nothing visible in the truth).

    Attributes:
        suite: of the simulator's tasks.
        verb: the verb class of the instruction; "unread" for a failed row.
        object_iou: IoU of the object's mask and the target's truth on x_0.
        gripper_iou, gripper_precision, gripper_recall: of the gripper's mask on the close step. The motion annotator's mask
            is the arm inside a box, so its precision says more than its IoU.
        region_recall: share of the target's visible pixels on x_0 that lie in the region proposal.
        region_area: the region proposal's share of the image.
        noun_right: see `noun_is_right`; False where no noun was found.
        close_error: close step minus contact step, in raw steps; negative where the gripper closes before the first touch.
    """

    episode_id: str
    suite: str
    verb: str
    status: str
    reason: str
    object_iou: float | None = None
    gripper_iou: float | None = None
    gripper_precision: float | None = None
    gripper_recall: float | None = None
    region_recall: float | None = None
    region_area: float | None = None
    noun_right: bool = False
    close_error: int | None = None

    @property
    def good(self) -> bool:
        """Whether there is an object mask, and its IoU is at least `GOOD_IOU`."""
        return self.object_iou is not None and self.object_iou >= GOOD_IOU


@dataclass(frozen=True)
class EvidenceScore:
    """The motion evidence, from 0 to 1, for the truth masks of one episode: the target's, and every other object's by name."""

    episode_id: str
    unusable: str = ""  # why the episode gives no motion evidence; then there are no scores
    target: float = 0.0
    others: dict[str, float] = field(default_factory=dict)


def score_episode(row: EpisodeAnnotation, truth: EpisodeTruth) -> EpisodeScore:
    """The measures of one row against the truth of its episode.

    Raises:
        InputError: the two are not of the same recording: they differ in the number of steps or the image size.
    """
    if row.status == table.FAILED:
        return EpisodeScore(row.episode_id, truth.suite, "unread", row.status, row.reason)
    if row.num_steps != len(truth.steps):
        raise InputError(
            f"{row.episode_id} has {row.num_steps} steps, its truth {len(truth.steps)}: give the truth.parquet that was "
            "recorded with the annotated data"
        )
    measured: dict[str, Any] = {}
    target = truth.mask(row.first_step) if row.first_step <= row.last_step else None  # else no step is valid
    if target is not None and row.image_height and target.shape != (row.image_height, row.image_width):
        raise InputError(f"{row.episode_id}: the truth's masks are not of the annotated images' size")
    if row.object_mask is not None and target is not None:
        measured["object_iou"] = float(masks.iou(masks.decode(row.object_mask), target))
    if row.region_box is not None and target is not None:
        region = masks.inside_box(row.region_box, *target.shape)
        measured["region_area"] = float(region.mean())
        measured["region_recall"] = _share(target & region, target)
    if row.gripper_mask is not None:
        found, gripper = masks.decode(row.gripper_mask), truth.mask(row.close_step, GRIPPER)
        measured["gripper_iou"] = float(masks.iou(found, gripper))
        measured["gripper_precision"] = _share(found & gripper, found)
        measured["gripper_recall"] = _share(found & gripper, gripper)
    if row.close_step >= 0 and truth.contact_step >= 0:
        measured["close_error"] = row.close_step - truth.contact_step
    measured["noun_right"] = noun_is_right(row.target_object, truth.target_phrase)
    return EpisodeScore(row.episode_id, truth.suite, row.verb, row.status, row.reason, **measured)


def region_curve(boxes_and_targets: Sequence[tuple[Box, np.ndarray]]) -> list[dict[str, float | None]]:
    """How much of the target lies in the gripper's box, and how large that is, when the box is scaled by `REGION_FACTORS`.

    Args:
        boxes_and_targets: per episode the gripper's xyxy box in pixels and the target's mask on x_0, bool (height, width).

    Returns:
        Per factor the mean `recall` (share of the target's pixels inside) and `area` (share of the image).
    """
    curve: list[dict[str, float | None]] = []
    for factor in REGION_FACTORS:
        regions = [
            masks.inside_box(propose_region(box, factor, *target.shape), *target.shape)
            for box, target in boxes_and_targets
        ]
        recalls = [
            _share(target & region, target) for region, (_, target) in zip(regions, boxes_and_targets, strict=True)
        ]
        curve.append(
            {"factor": factor, "recall": _mean(recalls), "area": _mean(float(region.mean()) for region in regions)}
        )
    return curve


def noun_is_right(prediction: str, phrase: str) -> bool:
    """Whether a predicted target noun names the object that the truth's phrase names.

    Case and articles (a, an, the) do not count. It is right if it has all words of the phrase and the same last word:
    further attributes may stand before it, but the noun must be the same.

    >>> noun_is_right("the small black bowl", "black bowl")
    True
    >>> noun_is_right("bowl of soup", "bowl")
    False
    """
    predicted, wanted = (
        [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in ("a", "an", "the")]
        for text in (prediction, phrase)
    )
    return bool(wanted) and bool(predicted) and set(wanted) <= set(predicted) and wanted[-1] == predicted[-1]


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Area under the ROC curve: the share of (positive, negative) pairs with the positive higher, ties as half; None without pairs."""
    if not len(positives) or not len(negatives):
        return None
    ordered = np.sort(np.asarray(negatives, float))
    below, not_above = (np.searchsorted(ordered, np.asarray(positives, float), side) for side in ("left", "right"))
    return float((below + not_above).sum() / 2 / (len(positives) * len(negatives)))


def bootstrap_interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> list[float] | None:
    """The 95% percentile bootstrap interval [low, high] of the mean of values; None without values."""
    if not len(values):
        return None
    generator, drawn_from = np.random.default_rng(seed), np.asarray(values, float)
    means = [generator.choice(drawn_from, len(drawn_from)).mean() for _ in range(resamples)]
    return [float(bound) for bound in np.percentile(means, [2.5, 97.5])]


def summarise(scores: Sequence[EpisodeScore], evidence: Sequence[EvidenceScore], min_evidence: float) -> dict[str, Any]:
    """`measure` of all episodes (`overall`), of those of each suite (`by_suite`), and of each verb class (`by_verb`).

    Args:
        scores: of all episodes.
        evidence: of those that have any.
        min_evidence: the filter's threshold, from which evidence supports a mask.
    """

    def by(name_of: Callable[[EpisodeScore], str]) -> dict[str, Any]:
        return {name: measure(group, evidence, min_evidence) for name, group in _grouped(scores, name_of).items()}

    return {
        "overall": measure(scores, evidence, min_evidence),
        "by_suite": by(lambda score: score.suite),
        "by_verb": by(lambda score: score.verb),
    }


def measure(scores: Sequence[EpisodeScore], evidence: Sequence[EvidenceScore], min_evidence: float) -> dict[str, Any]:
    """All measures of a group of episodes, as JSON has them. `n` says how many values a mean is over; it is None where that is 0.

    `filter` counts accepted and rejected rows with good and bad masks: one of at least `GOOD_IOU` is good, a missing one is
    bad, and a failed row counts as rejected. `evidence` compares targets with other objects: `auc` over all pairs,
    `auc_within` over pairs of the same episode.

    Args:
        scores: of the group.
        evidence: of any episodes; those outside the group are ignored.
        min_evidence: the filter's threshold, from which evidence supports a mask.
    """
    members = {score.episode_id for score in scores}
    read = [score for score in scores if score.status != table.FAILED]
    errors = np.array([score.close_error for score in read if score.close_error is not None], float)
    region = [score for score in read if score.region_recall is not None]
    return {
        "episodes": len(scores),
        "status": dict(sorted(Counter(score.status for score in scores).items())),
        "object_mask": _overlap(read),
        "object_mask_accepted": _overlap([score for score in read if score.status == table.ACCEPTED]),
        "gripper_mask": {
            "n": sum(score.gripper_iou is not None for score in read),
            "iou": _mean(score.gripper_iou for score in read),
            "precision": _mean(score.gripper_precision for score in read),
            "recall": _mean(score.gripper_recall for score in read),
        },
        "region": {
            "n": len(region),
            "recall": _mean(score.region_recall for score in region),
            "recall_at_least_0.9": _mean(float((score.region_recall or 0) >= 0.9) for score in region),
            "area": _mean(score.region_area for score in region),
        },
        "target_noun": {"n": len(read), "accuracy": _mean(float(score.noun_right) for score in read)},
        "close_step": {
            "n": len(errors),
            "not_found": len(read) - len(errors),
            "mean_absolute": _mean(abs(errors)),
            "median_absolute": float(np.median(abs(errors))) if len(errors) else None,
            "90th_percentile_absolute": float(np.percentile(abs(errors), 90)) if len(errors) else None,
            "largest_absolute": float(abs(errors).max()) if len(errors) else None,
            "mean_signed": _mean(errors),
            "within": {str(steps): _mean(abs(errors) <= steps) for steps in (0, 1, 2, 5)},
        },
        "filter": _confusion(scores),
        "reasons": {
            reason: {"good": sum(score.good for score in group), "bad": sum(not score.good for score in group)}
            for reason, group in _grouped(scores, lambda score: score.reason).items()
            if reason
        },
        "evidence": _evidence_measures([score for score in evidence if score.episode_id in members], min_evidence),
    }


def _grouped(scores: Sequence[EpisodeScore], name_of: Callable[[EpisodeScore], str]) -> dict[str, list[EpisodeScore]]:
    """The scores grouped by a name of each, the names in alphabetical order."""
    groups: dict[str, list[EpisodeScore]] = defaultdict(list)
    for score in scores:
        groups[name_of(score)].append(score)
    return dict(sorted(groups.items()))


def _overlap(scores: Sequence[EpisodeScore]) -> dict[str, Any]:
    values = [score.object_iou for score in scores if score.object_iou is not None]
    return {
        "n": len(values),
        "no_mask": len(scores) - len(values),
        "iou": _mean(values),
        "iou_95": bootstrap_interval(values),
        "iou_median": float(np.median(values)) if values else None,
        "good": _mean(float(value >= GOOD_IOU) for value in values),
    }


def _confusion(scores: Sequence[EpisodeScore]) -> dict[str, Any]:
    counts = Counter((score.status == table.ACCEPTED, score.good) for score in scores)
    accepted, good = counts[True, True] + counts[True, False], counts[True, True] + counts[False, True]
    return {
        "accepted_good": counts[True, True],
        "accepted_bad": counts[True, False],
        "rejected_good": counts[False, True],
        "rejected_bad": counts[False, False],
        "precision": counts[True, True] / accepted if accepted else None,
        "recall": counts[True, True] / good if good else None,
    }


def _evidence_measures(scores: Sequence[EvidenceScore], min_evidence: float) -> dict[str, Any]:
    usable = [score for score in scores if not score.unusable]
    targets = [score.target for score in usable]
    others = [value for score in usable for value in score.others.values()]
    pairs = sum(len(score.others) for score in usable)
    won = sum((auc([score.target], list(score.others.values())) or 0) * len(score.others) for score in usable)
    return {
        "n": len(usable),
        "other_objects": len(others),
        "unusable": dict(sorted(Counter(score.unusable for score in scores if score.unusable).items())),
        "auc": auc(targets, others),
        "auc_within": won / pairs if pairs else None,
        "targets_supported": _mean(float(value >= min_evidence) for value in targets),
        "others_contradicted": _mean(float(value < min_evidence) for value in others),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> float | None:
    """The pixels of `part` as a share of those of `whole`; None where that is empty."""
    total = np.count_nonzero(whole)
    return float(np.count_nonzero(part) / total) if total else None


def _mean(values: Any) -> float | None:
    """The mean of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
