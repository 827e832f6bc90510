"""The check of dataset_statistics.json against the samples that the shards hold."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pixel160k.format.statistics import Transitions

_ROWS = ("min", "q01", "mean", "q99", "max", "std")
_ASCENDING = (("min", "q01"), ("q01", "q99"), ("q99", "max"), ("min", "mean"), ("mean", "max"))


def check_statistics(found: dict[str, Any], transitions: Transitions, episodes: int) -> Iterator[str]:
    """Yield what is wrong with a data set's statistics, one fault per line.

    They are computed again where the shards hold all transitions that they count. Where the shards hold fewer, as those
    of accepted episodes do, only what must hold of any part of a data set is checked.

    Args:
        found: the statistics, in the form that `pixel160k.read.folder.parse_statistics` checks.
        transitions: of the samples in the shards, at least one.
        episodes: how many episodes the shards hold.
    """
    if found["num_transitions"] < len(transitions) or found["num_trajectories"] < episodes:
        yield "counts fewer transitions or trajectories than the shards hold"
    expected = transitions.statistics(found["num_trajectories"])
    if found["action"]["mask"] != expected["action"]["mask"]:
        yield f"action.mask is not {expected['action']['mask']}"
    for part in ("action", "proprio"):
        table, again = ({name: np.array(one[part][name], np.float64) for name in _ROWS} for one in (found, expected))
        if any(row.shape != again["min"].shape or not np.isfinite(row).all() for row in table.values()):
            yield f"{part} does not have {len(again['min'])} finite numbers per row"
            continue
        slack = 1e-6 * (1 + np.abs(table["min"]) + np.abs(table["max"]))  # float32 sources, float64 sums
        if (table["std"] < 0).any() or any((table[low] > table[high] + slack).any() for low, high in _ASCENDING):
            yield f"{part} is not ordered min <= q01 <= q99 <= max, min <= mean <= max, 0 <= std"
        if (again["min"] < table["min"] - slack).any() or (again["max"] > table["max"] + slack).any():
            yield f"{part}: samples lie outside min and max"
        if found["num_transitions"] == len(transitions):
            equal = {name: np.allclose(table[name], again[name], rtol=1e-6, atol=1e-9) for name in _ROWS}
            if different := [name for name in _ROWS if not equal[name]]:
                yield f"{part}: {', '.join(different)} differ from those of the samples"
