"""The order of an epoch: which samples a reader gets, in which order, computed from counts before anything is read.

Nothing here reads. An order that is known beforehand can be shared out between readers without overlap, its length can
be said, and reading can go on exactly where it stopped: what is left of a known order is a slice of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pixel160k.errors import InputError
from pixel160k.read.shard_sets import Shard, ShardSet
from pixel160k.seeding import seeded_generator


@dataclass(frozen=True)
class Reader:
    """Who reads: worker number `worker` of the `workers` of a DataLoader, in process `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1


@dataclass(frozen=True)
class Portion:
    """A shard that a reader reads, and which of its samples it keeps."""

    shard: Shard
    kept: np.ndarray  # bool (samples of the shard,)


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


def portions(shard_set: ShardSet, quota: int, seed: int, epoch: int, shuffled: bool, reader: Reader) -> list[Portion]:
    """What a reader reads of a data set in an epoch, in this order.

    An epoch passes over the set until `quota` samples are read. Each pass shuffles the shards (where `shuffled`), deals
    them out to the ranks, and each rank's shards to its workers. Where the quota is no multiple of the set's samples,
    the last pass keeps samples drawn at random. All readers together get the quota exactly.

    Raises:
        InputError: there are more readers than shards; states the arithmetic.
    """
    readers = reader.world_size * reader.workers
    if len(shard_set.shards) < readers:
        raise InputError(
            f"{shard_set.dataset} has {len(shard_set.shards)} shards with wanted samples, but {reader.world_size} ranks x "
            f"{reader.workers} workers = {readers} readers need a shard each; use fewer workers or ranks"
        )
    dealt = []
    for number in range(-(-quota // shard_set.samples)):
        generator = seeded_generator("shards", seed, epoch, shard_set.dataset, number)
        kept = [shard.wanted for shard in shard_set.shards]
        if (left := quota - number * shard_set.samples) < shard_set.samples:
            kept = _draw(kept, left, generator)
        order = generator.permutation(len(shard_set.shards)) if shuffled else np.arange(len(shard_set.shards))
        mine = order[reader.rank :: reader.world_size][reader.worker :: reader.workers]
        dealt += [Portion(shard_set.shards[index], kept[index]) for index in mine]
    return dealt


def _draw(wanted: list[np.ndarray], count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Of the wanted samples only `count`, drawn without repetition."""
    together = np.concatenate(wanted)
    drawn = np.zeros(len(together), bool)
    drawn[generator.choice(np.flatnonzero(together), count, replace=False)] = True
    return np.split(drawn, np.cumsum([len(one) for one in wanted])[:-1])


def window_shuffle(count: int, held: int, generator: np.random.Generator) -> np.ndarray:
    """Shuffle the numbers below `count` so little that a buffer of about `held` samples is enough; int64 (count,).

    The buffer belongs to a reader that reads samples 0, 1, 2, ... and gives them in this order. Each number is put off by
    a random time below twice `held`. When a number is due, all before it were read. Of the last 2 x `held` of these, half
    on average are due later and are held; never more than all of them.
    """
    return np.argsort(np.arange(count) + generator.random(count) * (2 * held), kind="stable")


def mixture(counts: Sequence[int], shuffled: bool, generator: np.random.Generator) -> np.ndarray:
    """From which data set each sample of an epoch comes, as indices, int (sum of counts,).

    Index i stands there `counts[i]` times: in random order where `shuffled`, else one data set after the other.
    """
    sets = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
    return generator.permutation(sets) if shuffled and len(counts) > 1 else sets
