"""The order of an epoch: which samples a reader gets, in which order, computed from counts before anything is read.

Nothing here reads. The order of all samples does not depend on who reads: readers take turns in it, and what was given is
a count for each of them. So reading can go on with other readers where some stopped, as it does in mosaicml-streaming.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pixel160k.errors import InputError
from pixel160k.read.shard_sets import ShardSet
from pixel160k.seeding import seeded_generator


@dataclass(frozen=True)
class Reader:
    """Who reads: number `number` of `count` that take turns; the workers of a DataLoader in all processes together."""

    number: int
    count: int


def quotas(sets: Sequence[ShardSet], weights: Mapping[str, float] | None) -> list[int]:
    """How many samples of each data set an epoch has, in the order of `sets`.

    Without weights an epoch has every sample once. Weights are the data sets' shares of an epoch, by their names. With
    weights every sample comes at least once, and an epoch is as short as that allows: samples of a set that is too
    small for its share come more than once.

    Raises:
        InputError: the weights are not one positive number per data set.
    """
    if weights is None:
        return [shard_set.samples for shard_set in sets]
    names = [shard_set.dataset for shard_set in sets]
    if set(weights) != set(names) or not all(0 < weight < float("inf") for weight in weights.values()):
        raise InputError(f"weights need a positive number for each data set ({', '.join(names)}), not {dict(weights)}")
    epoch = max(shard_set.samples / weights[shard_set.dataset] for shard_set in sets)
    return [max(shard_set.samples, round(epoch * weights[shard_set.dataset])) for shard_set in sets]


def epoch_order(sets: Sequence[ShardSet], quota: Sequence[int], seed: int, epoch: int, interleave: int) -> np.ndarray:
    """All samples of an epoch, whoever reads them: int64 (sum of quotas,).

    A number counts through all samples in the shards of all sets, wanted or not. An epoch passes over each set until its
    quota is given; where that is no multiple of the set's samples, the last pass gives samples drawn at random. Data sets
    are mixed at random. With `interleave` 0 nothing is: data set after data set, samples as they lie.
    """
    begin, orders = 0, []
    for shard_set, count in zip(sets, quota, strict=True):
        passes = []
        for number in range(-(-count // shard_set.samples)):
            generator = seeded_generator("shards", seed, epoch, shard_set.dataset, number)
            kept = [shard.wanted for shard in shard_set.shards]
            if (left := count - number * shard_set.samples) < shard_set.samples:
                kept = _draw(kept, left, generator)
            passes.append(interleaved(kept, interleave, generator) if interleave else _numbers(kept))
        orders.append(np.concatenate(passes) + begin)
        begin += sum(len(shard.wanted) for shard in shard_set.shards)
    if not interleave or len(orders) == 1:
        return np.concatenate(orders)
    turns = np.repeat(np.arange(len(orders)), quota)
    turns = seeded_generator("mixture", seed, epoch).permutation(turns)
    mixed = np.empty(len(turns), np.int64)
    for number, order in enumerate(orders):
        mixed[turns == number] = order
    return mixed


def interleaved(kept: Sequence[np.ndarray], lanes: int, generator: np.random.Generator) -> np.ndarray:
    """Shuffle the samples of shards, so that no more than about `lanes` shards are read from at any time; int64 (samples,).

    The shards are dealt out to as many lanes. A lane gives one shard after the other, each in random order, and all lanes
    are drawn from at random, each as often as it is long. So they end together. Each is a ring that begins in the middle
    of a shard, so that not all change to their next shard at the same time.

    Args:
        kept: of each shard, which of its samples to give, bool (samples of the shard,).
        lanes: at most so many.
        generator: what is random.
    """
    starts = np.cumsum([0, *(len(of_shard) for of_shard in kept)])
    order = generator.permutation(len(kept))
    lanes = min(lanes, len(kept))
    numbers, times = [], []
    for lane in range(lanes):
        ring = np.concatenate(
            [generator.permutation(np.flatnonzero(kept[shard])) + starts[shard] for shard in order[lane::lanes]]
        )
        numbers.append(np.roll(ring, generator.integers(len(ring)) if len(order[lane::lanes]) > 1 and len(ring) else 0))
        times.append((np.arange(len(ring)) + generator.random(len(ring))) / max(1, len(ring)))
    return np.concatenate(numbers)[np.argsort(np.concatenate(times), kind="stable")]


def left_over(order: np.ndarray, legs: Sequence[Sequence[int]]) -> np.ndarray:
    """What is left of an order when readers took turns in it, then others in what they left, and so on.

    Args:
        order: of the epoch.
        legs: of each such time, how many samples each reader gave.
    """
    for counts in legs:
        place = np.arange(len(order))
        order = order[place // len(counts) >= np.asarray(counts)[place % len(counts)]]
    return order


def turns_of(total: int, reader: Reader) -> int:
    """How many of so many samples are a reader's."""
    return len(range(reader.number, total, reader.count))


def _draw(wanted: list[np.ndarray], count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Of the wanted samples only `count`, drawn without repetition."""
    together = np.concatenate(wanted)
    drawn = np.zeros(len(together), bool)
    drawn[generator.choice(np.flatnonzero(together), count, replace=False)] = True
    return np.split(drawn, np.cumsum([len(one) for one in wanted])[:-1])


def _numbers(kept: Sequence[np.ndarray]) -> np.ndarray:
    return np.flatnonzero(np.concatenate(kept))
