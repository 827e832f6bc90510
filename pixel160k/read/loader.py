"""Shards as a stream of typed samples, for training: shuffled, shared out, mixed, and resumed exactly.

The order of an epoch is computed beforehand from the index (pixel160k/read/order.py), and each sample is read from where
it lies (pixel160k/read/stored.py). Nothing is held in a shuffle buffer, and to resume is to take what is left of the
order: nothing that came before is read. A buffer that draws at random while it reads could be resumed only by reading the
epoch again, or by saving its contents.
"""

import bisect
import hashlib
import itertools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pixel160k.errors import InputError, one_line
from pixel160k.format.table import ACCEPTED, REJECTED
from pixel160k.paths import AnyPath
from pixel160k.read import collate
from pixel160k.read.cache import ShardCache, open_cache
from pixel160k.read.order import Reader, epoch_order, left_over, quotas, turns_of
from pixel160k.read.resume import Begin, Legs, begin_of, find_states
from pixel160k.read.samples import MEMBERS, Sample, check_cameras, check_chunk, check_history, check_members, decode
from pixel160k.read.shard_sets import ShardSet, open_sets
from pixel160k.read.stored import Place, members_of_each, read_places

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info

    collate.register()
except ModuleNotFoundError:
    torch = None  # type: ignore[assignment]

    class IterableDataset:  # type: ignore[no-redef]
        """In the place of torch's, where there is no torch."""

    def get_worker_info() -> None:  # type: ignore[misc]
        """No worker: there is no `DataLoader` without torch."""


_WORKERS = 256  # of one process at most, for their counts
_EPOCH, _LOADS, _SKIPPED = range(3)  # of what workers share: the epoch, how many states were loaded, the first count,
_BEGUN = _SKIPPED + _WORKERS  # and the first mark of a worker that has begun from the states that this process loaded
_LOG = logging.getLogger(__name__)


class ShardLoader(IterableDataset):
    """An iterable of samples, and a torch `IterableDataset`; `open_shards` makes it.

    Iterating gives the samples of the epoch that `set_epoch` said, each time in the same order. Give it to a `DataLoader`,
    whose batches are then those of `pixel160k.read.collate.collate`, or with a `collate_fn` of your own; for exact
    resuming give it to torchdata's `StatefulDataLoader`. Iterate once at a time: the state is that of the iteration that
    began last.

    Attributes:
        statistics: of each data set by its name, in OpenVLA's names, as `pixel160k.format.actions.normalise` takes them.
        epoch: the epoch that the next iteration gives.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        members: frozenset[str],
        chunk: int,
        history: int,
        cameras: tuple[str, ...],
        weights: Mapping[str, float] | None,
        interleave: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
        skip: bool,
        cache: ShardCache | None,
    ) -> None:
        """See `open_shards`."""
        super().__init__()
        self.statistics = {shard_set.dataset: shard_set.statistics for shard_set in sets}
        self.epoch = epoch
        self._sets = sets
        self._quotas = quotas(sets, weights)
        self._content = _fingerprint(sets)
        self._members, self._chunk, self._history, self._cameras = members, chunk, history, cameras
        self._interleave, self._seed = interleave, seed
        self._rank, self._world_size = rank, world_size
        self._skip, self._cache = skip, cache
        self._shards = [(shard_set, shard) for shard_set in sets for shard in shard_set.shards]
        self._starts = [0, *itertools.accumulate(len(shard.wanted) for _, shard in self._shards)]
        self._states: list[dict[str, Any]] = []  # which the next iteration goes on from
        self._behind: Legs = {}  # of the epochs after the current one
        self._current = Begin(epoch, 0, {})  # where the last iteration began; `_position` says how far it is
        self._position = 0
        self._finished = False
        # What the workers of a DataLoader share with this process.
        size = _BEGUN + _WORKERS
        self._shared: Any = (
            np.zeros(size, np.int64) if torch is None else torch.zeros(size, dtype=torch.int64).share_memory_()
        )
        self._shared[_EPOCH] = self._heard = epoch
        self._loads = 0

    def __len__(self) -> int:
        """The number of samples of this rank in the epoch, over all workers."""
        left = sum(self._quotas) - sum(map(sum, self._behind.get(self.epoch, [])))
        return turns_of(left, Reader(self._rank, self._world_size))

    @property
    def episode_ids(self) -> list[str]:
        """The ids of the episodes that samples are given of, to all ranks together; known without opening a shard."""
        return [
            shard_set.episode_ids[episode]
            for shard_set in self._sets
            for shard in shard_set.shards
            for episode in np.unique(shard.episodes[shard.wanted])
        ]

    @property
    def skipped(self) -> int:
        """How many samples this process and its DataLoader's workers have skipped so far, with `on_error="skip"`."""
        return int(self._shared[_SKIPPED:_BEGUN].sum())

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration gives; call it before each. Another epoch, another order.

        Workers of a `DataLoader` that live on (`persistent_workers=True`) hear of it. A later epoch than that of a state that
        was loaded leaves out what the state would give.
        """
        self.epoch = epoch
        if get_worker_info() is None:  # a worker says it for itself alone
            self._shared[_EPOCH] = self._heard = epoch

    def state_dict(self) -> dict[str, Any]:
        """How far the iteration is. A loader of the same arguments that loads this gives the sample that is next here."""
        reader, finished = self._reader(), self._finished
        begin, position = (self._current, self._position) if not self._states else (self._begin(), 0)
        behind = begin.legs if self._states else begin.legs | self._behind
        return {
            "epoch": begin.epoch,
            "given": begin.given + position,
            "finished": finished,
            "reader": [reader.number, reader.count],
            "legs": [[epoch, legs] for epoch, legs in sorted(behind.items()) if epoch >= begin.epoch and legs],
            "order": self._order(),
        }

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Any]) -> None:
        """Let the next iteration go on where `state_dict` was called.

        With as many workers and processes as before, it gives the very samples in the very order that would have come.
        With another number nothing is lost and nothing comes twice; the order is another.

        Args:
            state: of this loader or of its `StatefulDataLoader`; where the number of workers or processes is another,
                a list of those of every process, and a new `DataLoader`, which itself loads nothing.

        Raises:
            InputError: this is no state of a loader, that of one with another order (names what differs), or not of all
                readers that there were. Workers that live on from an iteration before raise it when they are asked next.
        """
        states, order = find_states(state), self._order()
        for one in states:
            if different := [name for name, value in order.items() if one["order"].get(name) != value]:
                name = different[0]
                raise InputError(
                    f"this state cannot be resumed here: {name} was {one['order'].get(name)!r} and is now {order[name]!r}"
                )
        self._listen()
        begin = begin_of(states, self._reader(), sum(self._quotas))
        self._states = states
        if (worker := get_worker_info()) is None:
            self._loads += 1
            self._shared[_LOADS] = self._loads
            self._shared[_BEGUN:] = 0
        else:
            self._shared[_BEGUN + worker.id % _WORKERS] = 0
        self._finished = all(one["finished"] for one in states)
        # StatefulDataLoader loads a finished epoch's state after the user has set the next epoch: let that stand.
        self.epoch = max(self.epoch, begin.epoch) if self._finished else begin.epoch

    def __iter__(self) -> Iterator[Sample]:
        """The samples of the epoch, or after `load_state_dict` the rest of them.

        Raises:
            InputError: a shard is broken or a sample damaged (said when it is reached; names the shard and the key).
        """
        try:
            self._listen()
        except InputError as error:
            return _raise_at_first(error)
        begin = self._begin() if self._states else None
        if begin is not None:
            self._behind = {epoch: legs for epoch, legs in begin.legs.items() if epoch > begin.epoch}
        if begin is None or self._has_begun() or begin.epoch < self.epoch:
            begin = Begin(self.epoch, 0, {self.epoch: self._behind.get(self.epoch, [])})
        self._current, self._states, self._finished, self._position = begin, [], False, 0
        return self._samples(begin)

    def _samples(self, begin: Begin) -> Iterator[Sample]:
        order = epoch_order(self._sets, self._quotas, self._seed, begin.epoch, self._interleave)
        reader = self._reader()
        mine = left_over(order, begin.legs.get(begin.epoch, []))[reader.number :: reader.count][begin.given :].copy()
        del order
        worker, fault, warned = get_worker_info(), None, set()
        slot = _SKIPPED + (worker.id % _WORKERS if worker else 0)
        given = False
        for number, (place, content) in enumerate(read_places(map(self._place, mine), self._cache), 1):
            try:
                sample = self._decode(place, content)
            except InputError as error:
                unreachable = isinstance(content, OSError) and not isinstance(content, FileNotFoundError)
                if not self._skip or unreachable:
                    raise
                fault = error
                self._shared[slot] += 1
                if place.shard.path not in warned:
                    warned.add(place.shard.path)
                    _LOG.warning("skipped: %s; others of this shard are counted without a word", error)
                continue
            self._position, given = number, True
            yield sample
        self._position = len(mine)
        if fault is not None and not given and not begin.given:
            raise InputError(f"all {len(mine)} samples had to be skipped; the last: {fault}")
        self._finished = True
        self._behind.pop(begin.epoch, None)

    def _place(self, number: int) -> Place:
        at = bisect.bisect_right(self._starts, number) - 1
        shard_set, shard = self._shards[at]
        row = number - self._starts[at]
        first = shard_set.first_before(shard, row, self._history) if self._history else row
        edges = shard.blocks[first : row + 2].tolist()
        lengths = ((end - begin) * 512 for begin, end in itertools.pairwise(edges))
        keys = (shard_set.key(shard, number) for number in range(first, row + 1))
        return Place(shard, edges[0] * 512, tuple(zip(keys, lengths, strict=True)))

    def _decode(self, place: Place, content: bytes | InputError | OSError) -> Sample:
        """Decode a sample from its bytes, or say why they are not there. Raises InputError."""
        url = place.shard.path
        try:
            if isinstance(content, OSError):
                raise InputError(content.strerror or one_line(content))
            if isinstance(content, InputError):
                raise content
            past = members_of_each(content, place.samples)
        except InputError as error:
            fault = f"{url} cannot be read at {place.key} ({one_line(error)})"
            raise InputError(f"{fault}; `pixelcli verify` says more") from None
        try:
            members = past.pop(place.key)
            return decode(place.key, members, self._members, self._chunk, self._history, past, self._cameras)
        except InputError as error:
            raise InputError(f"{url}: {error}; `pixelcli verify` says more") from None

    def _begin(self) -> Begin:
        return begin_of(self._states, self._reader(), sum(self._quotas))

    def _has_begun(self) -> bool:
        """Whether a worker in the place of this one has begun from the same states: each iteration has new ones, which inherit them."""
        if (worker := get_worker_info()) is None:
            return False
        slot = _BEGUN + worker.id % _WORKERS
        begun, self._shared[slot] = bool(self._shared[slot]), 1
        return begun

    def _listen(self) -> None:
        """A worker that lives on hears which epoch was set where the DataLoader is. Raises InputError where a state was loaded."""
        if int(self._shared[_LOADS]) != self._loads:
            raise InputError(
                "a state was loaded after the workers of this DataLoader had begun, which live on and never saw it; "
                "make a new DataLoader"
            )
        if (told := int(self._shared[_EPOCH])) != self._heard:
            self.epoch = self._heard = told

    def _reader(self) -> Reader:
        """This process among the readers: the user says the rank, torch the worker."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        return Reader(self._rank + self._world_size * number, self._world_size * workers)

    def _order(self) -> dict[str, Any]:
        """All that the order of an epoch depends on."""
        return {
            "seed": self._seed,
            "interleave": self._interleave,
            "samples": {shard_set.dataset: quota for shard_set, quota in zip(self._sets, self._quotas, strict=True)},
            "content": self._content,
        }


def open_shards(
    sources: str | AnyPath | Sequence[str | AnyPath],
    *,
    members: Collection[str] = tuple(MEMBERS),
    chunk: int = 8,
    history: int = 0,
    cameras: Collection[str] = (),
    split: str | None = None,
    status: str | None = None,
    weights: Mapping[str, float] | None = None,
    interleave: int = 64,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    on_error: Literal["raise", "skip"] = "raise",
    cache_dir: str | Path | None = None,
    cache_bytes: int = 50 << 30,
) -> ShardLoader:
    """Open shards as a stream of samples, for training; the tars are not read yet.

    Args:
        sources: folders with shards, tars, or patterns of tars with braces (`x-{00000..00009}.tar`), local or as URLs;
            manifest.json, index.parquet and dataset_statistics.json lie beside the tars. Several data sets are mixed.
        members: what to decode: image, labels, prompts, actions, state. The other fields of a sample are always there.
        chunk: how many actions each sample has: this step's and those after it.
        history: of how many steps before it each sample has the images too (`Sample.history`).
        cameras: further cameras whose images samples have too (`Sample.views`); at least one of the data sets holds each.
        split: only samples of this split of the source, such as "train".
        status: only samples of this status, "accepted" or "rejected"; shards built with `--include all` hold both.
        weights: each data set's share of an epoch by its name, relative to the others. Without weights every sample comes
            once. With weights every sample comes at least once, and samples of a set too small for its share repeat.
        interleave: from how many shards at once samples are drawn at random; shards are shuffled too. More mix better,
            fewer read more nearly from front to back, which old disks need. 0: nothing is shuffled, samples come as they
            lie, data set after data set.
        seed: of everything random; the same seed and epoch give the same order.
        epoch: of the first iteration; `set_epoch` says it for the next.
        rank: which of `world_size` processes this is; they take turns. Leave both at their defaults where one process reads
            for all, as Hugging Face `Trainer` does it for iterable data sets.
        world_size: how many processes read.
        on_error: "skip" leaves out samples that are damaged or missing and counts them (`skipped`); a store that cannot
            be reached is an error all the same.
        cache_dir: a local folder that keeps whole shards of a store or the web, for all processes of a machine.
        cache_bytes: how many bytes it keeps; the shards used last stay.

    Raises:
        InputError: there are no shards or those of an unknown format, no sample is of the split and status asked for,
            an argument is out of range, or the cache is too small for the shards that are read at once.
    """
    if interleave < 0:
        raise InputError(f"interleave is a number of shards, 0 to shuffle nothing, not {interleave}")
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    if not 0 <= rank < world_size:
        raise InputError(f"rank {rank} is none of the {world_size} from 0 to {world_size - 1}")
    if status not in (None, ACCEPTED, REJECTED):
        raise InputError(f"status is {ACCEPTED!r}, {REJECTED!r} or None for both, not {status!r}")
    wanted = check_members(members)
    sets = open_sets(sources, split, status)
    held = dict.fromkeys(camera for shard_set in sets for camera in shard_set.cameras)
    asked = check_cameras(cameras, held, " and ".join(str(shard_set.folder) for shard_set in sets))
    check_history(history, wanted, asked)
    for shard_set in sets:
        check_chunk(chunk, shard_set.horizon, str(shard_set.folder))
    cache = None if cache_dir is None else open_cache(cache_dir, cache_bytes, _bytes_at_once(sets, interleave))
    skip = on_error == "skip"
    return ShardLoader(
        sets, wanted, chunk, history, asked, weights, interleave, seed, epoch, rank, world_size, skip, cache
    )


def _bytes_at_once(sets: Sequence[ShardSet], interleave: int) -> int:
    """How many bytes the shards have that samples are drawn from at once, at most."""
    return sum(sum(sorted(shard.bytes for shard in of_set.shards)[-max(1, interleave) :]) for of_set in sets)


def _fingerprint(sets: Sequence[ShardSet]) -> str:
    """SHA-256 (hex) of which shards are read and which of their samples are wanted."""
    digest = hashlib.sha256()
    for shard_set in sets:
        for shard in shard_set.shards:
            digest.update(f"{shard_set.dataset}/{shard.path.name}/{len(shard.wanted)}".encode())
            digest.update(np.packbits(shard.wanted).tobytes())
    return digest.hexdigest()


def _raise_at_first(error: InputError) -> Iterator[Sample]:
    """Raises the error where the first sample is asked for: a worker that cannot begin to iterate may die without a word."""
    yield from ()
    raise error
