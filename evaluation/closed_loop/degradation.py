"""What a policy loses when the domain shifts: each shift beside none on the same scenes, and beside another policy's loss."""

from collections.abc import Sequence
from typing import Any

from evaluation.closed_loop.episode import EpisodeResult
from evaluation.closed_loop.measures import measured, paired
from evaluation.shifts import NONE


def by_shift(
    results: Sequence[EpisodeResult],
    conditions: Sequence[str],
    shifts: Sequence[str],
    other: Sequence[EpisodeResult] | None = None,
) -> list[dict[str, Any]]:
    """A row for each shift and condition, in their order.

    Args:
        results: rows of an evaluation.
        conditions: what points.
        shifts: of the domain; what they cost is known where "none" is among them.
        other: rows of another evaluation, to compare with.

    Returns:
        `shift`, `condition`, and of each: `success`, `first_touch` and `errors` as `measures.measured` has them; `lost`: how much
        lower the share of successes is than with no shift, on the same scenes (`measures.paired`: `scenes`, `only_first`
        without the shift, `only_second` with it, `p`), None where nothing says so. With `other`, `there` has the same of it,
        and `between` the pairs of both under this shift.
    """
    rows = []
    for shift in shifts:
        for condition in conditions:
            row = {"shift": shift, "condition": condition, **_cost(results, shift, condition)}
            if other is not None:
                both = (_chosen(of, shift, condition) for of in (results, other))
                row |= {"there": _cost(other, shift, condition), "between": paired(*both)}
            rows.append(row)
    return rows


def _cost(results: Sequence[EpisodeResult], shift: str, condition: str) -> dict[str, Any]:
    rows = _chosen(results, shift, condition)
    found = {key: value for key, value in measured(rows).items() if key != "tasks"}
    pairs = paired(_chosen(results, NONE, condition), rows)
    if shift == NONE or not pairs["scenes"]:
        return {**found, "lost": None}
    lost = (pairs["only_first"] - pairs["only_second"]) / pairs["scenes"]
    return {**found, "lost": {"rate": round(lost, 4), **pairs}}


def _chosen(results: Sequence[EpisodeResult], shift: str, condition: str) -> list[EpisodeResult]:
    return [row for row in results if row.shift == shift and row.condition == condition]
