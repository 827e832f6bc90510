"""The statistics of a data set, exact over any number of steps, in a few MB of memory.

Names and rules are OpenVLA's (BOUNDS_Q99). The steps wait on disk, one file per dimension, and each file is read a few times,
a block at a time: for the sums, for the sums of squares, and three times for the quantiles. Those need no sorting, since
float32 values are in the order of their bits: the first reading counts how many values have which upper 11 bits, the second
counts the next 11 bits among those values that share their upper bits with a quantile, the third the rest.

Every number is to the last bit what NumPy computes of the whole column in float64: `np.sum` halves a long column again and
again (pairwise summation), and so do the sums here.
"""

import math
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from pixel160k.format.actions import ACTION_DIMENSIONS

_BLOCK = 1 << 16  # values of a column that are in memory together
_DIGITS = ((21, 11), (10, 11), (0, 10))  # the parts of 32 bits that are counted one after the other: lowest bit, length
_MEASURES = ("mean", "std", "max", "min", "q01", "q99")
_QUANTILES = (0.01, 0.99)
_SCALED = [True] * 6 + [False]  # the gripper stays as it is


class Transitions:
    """The actions and states of a data set's valid steps, added bit by bit, and the statistics of them all."""

    def __init__(self, folder: Path | None = None) -> None:
        """Of no step yet. `folder` is where 4 bytes per number wait until the end; by default where temporary files are."""
        self._folder, self._open = folder, ExitStack()
        self._columns: list[IO[bytes]] = []
        self._steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return self._steps

    @property
    def state_width(self) -> int | None:
        """How many numbers a state has; None before the first step."""
        return len(self._columns) - ACTION_DIMENSIONS if self._columns else None

    def add(self, actions: np.ndarray, states: np.ndarray) -> None:
        """Add finite steps: actions (N, 7) and states (N, S), both as float32; S is the same every time."""
        values = np.concatenate([actions, states], axis=1, dtype=np.float32)
        if not self._columns:
            files = (tempfile.TemporaryFile(dir=self._folder) for _ in values.T)  # noqa: SIM115 (by __exit__)
            self._columns = [self._open.enter_context(file) for file in files]
        for file, column in zip(self._columns, values.T, strict=True):
            file.write(column.tobytes())
        self._steps += len(values)

    def statistics(self, trajectories: int) -> dict[str, Any]:
        """Statistics over all steps, at least one, as OpenVLA writes them in dataset_statistics.json.

        Args:
            trajectories: number of episodes that the steps come from.
        """
        measured = [_measure(file, self._steps) for file in self._columns]
        rows = [dict(zip(_MEASURES, measures, strict=True)) for measures in measured]
        action, proprio = (
            {name: [row[name] for row in some] for name in _MEASURES}
            for some in (rows[:ACTION_DIMENSIONS], rows[ACTION_DIMENSIONS:])
        )
        return {
            "action": {**action, "mask": list(_SCALED)},
            "proprio": proprio,
            "num_transitions": self._steps,
            "num_trajectories": trajectories,
        }


def dataset_statistics(actions: np.ndarray, states: np.ndarray, trajectories: int) -> dict[str, Any]:
    """`Transitions.statistics` of steps that are all in memory: actions float32 (N, 7), states float32 (N, S)."""
    with Transitions() as transitions:
        transitions.add(actions, states)
        return transitions.statistics(trajectories)


def _measure(file: IO[bytes], steps: int) -> tuple[float, ...]:
    """The `_MEASURES` of a column of float32 values."""
    extremes = [math.inf, -math.inf]

    def plain(values: np.ndarray) -> np.ndarray:
        extremes[:] = min(extremes[0], values.min()), max(extremes[1], values.max())
        return values.astype(np.float64)

    mean = _sum(file, steps, plain) / steps
    variance = _sum(file, steps, lambda values: np.square(values.astype(np.float64) - mean)) / steps
    positions = [(steps - 1) * quantile for quantile in _QUANTILES]
    around = [(math.floor(position), min(math.floor(position) + 1, steps - 1)) for position in positions]
    values = _at_ranks(file, {rank for ranks in around for rank in ranks})
    quantiles = [
        np.quantile([values[rank] for rank in ranks], position - ranks[0])
        for ranks, position in zip(around, positions, strict=True)
    ]
    return tuple(map(float, (mean, np.sqrt(variance), extremes[1], extremes[0], *quantiles)))


def _sum(file: IO[bytes], steps: int, of: Callable[[np.ndarray], np.ndarray]) -> float:
    """Add up what `of` makes of each block of a column, float64, halving as NumPy does."""
    file.seek(0)

    def add(length: int) -> float:
        if length <= _BLOCK:
            return np.add.reduce(of(_read(file, length)))
        half = length // 2
        half -= half % 8
        return add(half) + add(length - half)

    return add(steps)


def _at_ranks(file: IO[bytes], ranks: set[int]) -> dict[int, float]:
    """The values of a column that have these ranks, counted from 0, if it were sorted."""
    # By rank: the leading bits of its value, and its rank among those that share them.
    found = {rank: (0, rank) for rank in ranks}
    for shift, length in _DIGITS:
        counts = {leading: np.zeros(1 << length, np.int64) for leading, _ in found.values()}
        file.seek(0)
        while len(values := _read(file, _BLOCK)):
            order = _order(values)
            for leading, count in counts.items():
                digits = order[order >> (shift + length) == leading] >> shift & (1 << length) - 1
                count += np.bincount(digits.astype(np.int64), minlength=1 << length)
        for rank, (leading, place) in found.items():
            ends = counts[leading].cumsum()
            digit = int(np.searchsorted(ends, place, side="right"))
            found[rank] = (leading << length) + digit, place - int(ends[digit] - counts[leading][digit])
    return {rank: _value(order) for rank, (order, _) in found.items()}


def _read(file: IO[bytes], length: int) -> np.ndarray:
    return np.frombuffer(file.read(4 * length), np.float32)


def _order(values: np.ndarray) -> np.ndarray:
    """Numbers of 32 bits, uint64, that are in the order of these float32 values, and equal where their bits are."""
    bits = values.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)


def _value(order: int) -> float:
    """The value of a number of `_order`."""
    bits = order ^ (1 << 31) if order >> 31 else order ^ 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))
