"""How an evaluation of annotations is shown: tables for the terminal, and a page of the worst masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.table import Table

from annotate.sources.episode import Episode
from evaluation.annotation_measures import GOOD_IOU, EpisodeScore
from pixel160k.files import write_text
from pixel160k.format import masks, table
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.paths import AnyPath
from pixel160k.show import drawing
from simulation.truth import StepTruth

WORST_CASES = 24
_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Case:
    """A row with its measures and the truth of two steps; that of all steps would not fit in memory."""

    row: EpisodeAnnotation
    score: EpisodeScore
    initial: StepTruth | None  # of the first valid step; None where the row failed or has no valid step
    close: StepTruth | None  # of the close step; None where there is none


def summary_tables(result: dict[str, Any]) -> list[Table]:
    """The result of `evaluation.annotations.evaluate` for the terminal.

    The tables: measures overall, by suite and by verb class; the filter; the reasons; the expanded gripper box.
    """
    groups = {"overall": result["overall"]}
    # A single group would only repeat "overall".
    for kind in ("by_suite", "by_verb"):
        groups |= result[kind] if len(result[kind]) > 1 else {}
    join = result["join"]
    measures = Table(
        title=f"{result['dataset']} against truth",
        caption=f"{join['matched']} of {join['rows']} rows have truth; "
        f"{len(join['truth_without_row'])} episodes of the truth have no row",
    )
    measures.add_column("measure")
    for name, group in groups.items():
        measures.add_column(f"{name}\n{group['episodes']} episodes", justify="right")
    for label, value_of in _TABLE_ROWS:
        measures.add_row(label, *map(value_of, groups.values()))

    confusion = Table(title="the filter, overall")
    for label in ("", f"mask good (IoU >= {GOOD_IOU})", "bad or none"):
        confusion.add_column(label, justify="right" if label else "left")
    counts = result["overall"]["filter"]
    for status in ("accepted", "rejected"):
        confusion.add_row(status, str(counts[f"{status}_good"]), str(counts[f"{status}_bad"]))
    confusion.caption = f"precision {_text(counts['precision'])}, recall {_text(counts['recall'])}"

    reasons = Table(title="why not accepted")
    for label in ("reason", "good masks", "bad or none"):
        reasons.add_column(label, justify="left" if label == "reason" else "right")
    for reason, split in sorted(result["overall"]["reasons"].items(), key=lambda item: -sum(item[1].values())):
        reasons.add_row(reason, str(split["good"]), str(split["bad"]))
    curve = Table(title="the gripper box, expanded", caption="share of the target inside, against share of the image")
    for label in ("factor", "target inside", "area"):
        curve.add_column(label, justify="right")
    for point in result["region_curve"]:
        curve.add_row(str(point["factor"]), _text(point["recall"]), _text(point["area"]))
    return [measures, confusion, *([reasons] if reasons.rows else []), curve]


def _text(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(overlap: dict[str, Any]) -> str:
    low, high = overlap["iou_95"] or (None, None)
    return f"{_text(overlap['iou'])} [{_text(low, 2)}, {_text(high, 2)}]"


_TABLE_ROWS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("object mask: rows with one", lambda group: str(group["object_mask"]["n"])),
    ("  mean IoU [95 %]", lambda group: _interval(group["object_mask"])),
    (f"  IoU >= {GOOD_IOU}", lambda group: _text(group["object_mask"]["good"])),
    ("accepted rows", lambda group: str(group["status"].get(table.ACCEPTED, 0))),
    ("  mean IoU [95 %]", lambda group: _interval(group["object_mask_accepted"])),
    (f"  IoU >= {GOOD_IOU} (precision)", lambda group: _text(group["object_mask_accepted"]["good"])),
    ("  share of good masks (recall)", lambda group: _text(group["filter"]["recall"])),
    ("gripper mask: IoU", lambda group: _text(group["gripper_mask"]["iou"])),
    ("  precision", lambda group: _text(group["gripper_mask"]["precision"])),
    ("  recall", lambda group: _text(group["gripper_mask"]["recall"])),
    ("region: share of the target inside", lambda group: _text(group["region"]["recall"])),
    ("  episodes with >= 0.9", lambda group: _text(group["region"]["recall_at_least_0.9"])),
    ("  share of the image", lambda group: _text(group["region"]["area"])),
    ("target noun right", lambda group: _text(group["target_noun"]["accuracy"])),
    ("close step: median error", lambda group: _text(group["close_step"]["median_absolute"], 1)),
    ("  within 2 steps", lambda group: _text(group["close_step"]["within"]["2"])),
    ("  not found", lambda group: str(group["close_step"]["not_found"])),
    ("motion evidence: episodes", lambda group: str(group["evidence"]["n"])),
    ("  AUC", lambda group: _text(group["evidence"]["auc"])),
    ("  AUC within an episode", lambda group: _text(group["evidence"]["auc_within"])),
    ("  targets supported", lambda group: _text(group["evidence"]["targets_supported"])),
    ("  other objects contradicted", lambda group: _text(group["evidence"]["others_contradicted"])),
]


def worst_cases(cases: Sequence[Case]) -> list[Case]:
    """At most `WORST_CASES` cases: those whose object mask has the lowest IoU, lowest first."""
    measured = [case for case in cases if case.score.object_iou is not None]
    return sorted(measured, key=lambda case: (case.score.object_iou, case.row.episode_id))[:WORST_CASES]


def write_page(path: AnyPath, cases: Sequence[Case], pictures: dict[str, list[Markup]], dataset: str) -> None:
    """Write the page of the worst masks as one HTML file.

    Args:
        path: of the file.
        cases: all cases; the page chooses and counts.
        pictures: by episode id, for each of the worst cases, see `draw_case`.
        dataset: its name, for the title.
    """
    without = sum(case.score.object_iou is None for case in cases)
    values = {
        "title": f"{dataset}: the worst masks",
        "cases": [(case.row, case.score, pictures[case.row.episode_id]) for case in worst_cases(cases)],
        "measured": len(cases) - without,
        "without": without,
    }
    write_text(path, drawing.render(_TEMPLATE, values))


def draw_case(case: Case, episode: Episode) -> list[Markup]:
    """Pictures of a case's first and close frame, each with the annotated mask, the truth's outline and the region.

    A frame without mask or truth is left out.
    """
    row = case.row
    size = row.image_height, row.image_width
    region = [] if row.region_box is None else [drawing.box_layer(row.region_box, "region")]
    true_object = case.initial.target if case.initial else None
    true_gripper = case.close.gripper if case.close else None
    drawn = [
        (row.first_step, row.object_mask, "target", true_object, "the first frame"),
        (row.close_step, row.gripper_mask, "gripper", true_gripper, "the gripper closes"),
    ]
    pictures = []
    for step, mask, name, truth, caption in drawn:
        if mask is None or truth is None:
            continue
        layers = [
            drawing.mask_layer(masks.decode(mask), f"mask {name}"),
            drawing.mask_layer(masks.decode(truth), "truth"),
            *region,
        ]
        pictures.append(drawing.picture(episode.images[step], size, layers, f"{caption}: step {step}"))
    return pictures
