"""The table that benchmarks of annotation quality print: one row per group of evaluations."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

COLUMNS = (
    "episodes", "masks", "IoU", "accepted", "IoU of accepted", "IoU >= 0.5 of accepted", "gripper IoU",
    "region recall", "region area", "noun right", "evidence AUC",
)  # fmt: skip


def quality_table(*labels: str) -> Table:
    """An empty table: the given columns of labels, then the measures."""
    return Table(*labels, *COLUMNS)


def figures(groups: Sequence[dict[str, Any]]) -> list[str]:
    """The measures of several evaluations (`overall` of each) together, in the order of COLUMNS; means are weighted by counts."""

    def total(*path: str) -> int:
        return sum(_at(group, path) for group in groups)

    def mean(value: str, *path: str) -> str:
        counts = [_at(group, (*path, "n")) for group in groups]
        values = [_at(group, (*path, value)) or 0.0 for group in groups]
        return f"{sum(n * v for n, v in zip(counts, values, strict=True)) / max(1, sum(counts)):.3f}"

    accepted = sum(group["status"].get("accepted", 0) for group in groups)
    return [
        str(total("episodes")),
        str(total("object_mask", "n")),
        mean("iou", "object_mask"),
        str(accepted),
        mean("iou", "object_mask_accepted"),
        f"{total('filter', 'accepted_good')} of {accepted}",
        mean("iou", "gripper_mask"),
        mean("recall", "region"),
        mean("area", "region"),
        mean("accuracy", "target_noun"),
        mean("auc", "evidence"),
    ]


def _at(group: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = group
    for name in path:
        value = value[name]
    return value
