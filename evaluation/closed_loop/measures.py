"""What rows of episodes say: success rates with their intervals, first touches, paired comparisons, what it cost."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from evaluation.closed_loop.episode import EpisodeResult
from evaluation.shifts import NONE


def share(successes: int, of: int) -> dict[str, Any]:
    """A share with its 95% Wilson score interval; `rate` and `interval` are None of nothing."""
    if not of:
        return {"successes": 0, "of": 0, "rate": None, "interval": None}
    from scipy.stats import binomtest  # takes a second

    interval = binomtest(successes, of).proportion_ci(method="wilson")
    return {
        "successes": successes,
        "of": of,
        "rate": round(successes / of, 4),
        "interval": [round(float(interval.low), 4), round(float(interval.high), 4)],
    }


def paired(first: Sequence[EpisodeResult], second: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Two evaluations of the same scenes: how often only one of them succeeded, and McNemar's exact two-sided p of that.

    Each has a scene once. Scenes are the same under whatever shift; those that only one came to the end of are left out.
    """
    one, other = (
        {replace(row.scene, shift=NONE): row.success for row in rows if not row.error} for rows in (first, second)
    )
    both = sorted(one.keys() & other.keys())
    only_first = sum(one[scene] and not other[scene] for scene in both)
    only_second = sum(other[scene] and not one[scene] for scene in both)
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return {
        "scenes": len(both),
        "only_first": only_first,
        "only_second": only_second,
        "p": round(float(binomtest(only_first, discordant).pvalue), 6) if discordant else 1.0,
    }


def summarise(results: Sequence[EpisodeResult], conditions: Sequence[str]) -> dict[str, Any]:
    """The measures of an evaluation.

    Args:
        results: its rows; those with an error are counted apart and are part of no rate.
        conditions: their order.

    Returns:
        `conditions`: by name, `success` and `first_touch` (whether what a finger touched first is meant, among all
        episodes in which a touch of that can be told) as `share` gives them, `errors`, and `tasks`: the success by task.
        `paired`: each two conditions.
    """
    by_condition = {name: [row for row in results if row.condition == name] for name in conditions}
    compared = [
        {"first": first, "second": second, **paired(by_condition[first], by_condition[second])}
        for first, second in combinations(conditions, 2)
    ]
    return {"conditions": {name: measured(rows) for name, rows in by_condition.items()}, "paired": compared}


def measured(rows: Sequence[EpisodeResult]) -> dict[str, Any]:
    """The measures of a condition, see `summarise`."""
    ended = [row for row in rows if not row.error]

    def of(rows: Sequence[EpisodeResult], holds: Callable[[EpisodeResult], bool]) -> dict[str, Any]:
        return share(sum(map(holds, rows)), len(rows))

    tasks = sorted({row.task_id for row in rows})
    return {
        "success": of(ended, lambda row: row.success),
        "first_touch": of([row for row in ended if row.meant], lambda row: row.first_touch in row.meant.split(",")),
        "errors": len(rows) - len(ended),
        "tasks": {task: of([row for row in ended if row.task_id == task], lambda row: row.success) for task in tasks},
    }


def cost(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """Seconds of an episode, and which shares of them the policy took (with waiting for its turn) and rendering."""
    ended = [row for row in results if not row.error and row.seconds]
    whole = sum(row.seconds for row in ended)
    if not whole:
        return {}
    return {
        "seconds_per_episode": round(whole / len(ended), 2),
        "policy": round(sum(row.policy_seconds for row in ended) / whole, 3),
        "rendering": round(sum(row.render_seconds for row in ended) / whole, 3),
    }
