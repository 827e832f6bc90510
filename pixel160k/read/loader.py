"""Shards as a stream of typed samples, for training: shuffled, shared out, mixed, and resumed exactly.

`webdataset` reads the tars from front to back, disks and URLs alike. Only the shuffle buffer is held in memory, and it
holds encoded samples. The order is computed beforehand from the index (pixel160k/read/order.py), and the reader holds a
sample until it is due. To resume is therefore to take a slice of that order: shards whose samples all came before are
not opened, and samples that came before are not decoded. A buffer that draws at random while it reads could be resumed
only by reading the epoch again, or by saving its contents.
"""

import dataclasses
import hashlib
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import webdataset
from webdataset import tariterators
from webdataset.pytorch import IterableDataset  # torch's, or an empty class where there is no torch

from pixel160k.errors import InputError
from pixel160k.format.table import ACCEPTED, REJECTED
from pixel160k.paths import AnyPath, open_path, opens
from pixel160k.read.order import Portion, Reader, mixture, portions, quotas, window_shuffle
from pixel160k.read.samples import MEMBERS, Sample, check_chunk, check_members, decode, suffixes
from pixel160k.read.shard_sets import Shard, ShardSet, open_sets
from pixel160k.seeding import seeded_generator


class ShardLoader(IterableDataset):
    """An iterable of samples, and a torch `IterableDataset`; `open_shards` makes it.

    Iterating gives the samples of the epoch that `set_epoch` said, each time in the same order. Give it to a `DataLoader`
    with a `collate_fn` of your own; for exact resuming give it to torchdata's `StatefulDataLoader`. Do not use
    `persistent_workers`: `set_epoch` does not reach such workers. Iterate once at a time: the state is that of the
    iteration that began last.

    Attributes:
        statistics: of each data set by its name, in OpenVLA's names, as `pixel160k.format.actions.normalise` takes them.
        epoch: the epoch that the next iteration gives.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        members: frozenset[str],
        chunk: int,
        weights: Mapping[str, float] | None,
        shuffle_buffer: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
    ) -> None:
        """See `open_shards`."""
        super().__init__()
        self.statistics = {shard_set.dataset: shard_set.statistics for shard_set in sets}
        self.epoch = epoch
        self._sets = sets
        self._quotas = quotas(sets, weights)
        self._content = _fingerprint(sets)
        self._members, self._chunk = members, chunk
        self._shuffle_buffer, self._seed = shuffle_buffer, seed
        self._rank, self._world_size = rank, world_size
        self._resume: tuple[int, int] | None = None  # epoch and position at which the next iteration begins
        self._current = epoch  # the epoch of the last iteration, and how many of its samples it gave
        self._position = 0
        self._finished = False
        self._portions(epoch, Reader(rank, world_size))  # says here already that there are too few shards for the ranks

    def __len__(self) -> int:
        """The number of samples of this rank in the epoch, over all workers."""
        dealt = self._portions(self.epoch, Reader(self._rank, self._world_size))
        return sum(int(portion.kept.sum()) for of_set in dealt for portion in of_set)

    @property
    def episode_ids(self) -> list[str]:
        """The ids of the episodes that samples are given of, to all ranks together; known without opening a shard."""
        return [
            shard_set.episode_ids[episode]
            for shard_set in self._sets
            for shard in shard_set.shards
            for episode in np.unique(shard.episodes[shard.wanted])
        ]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration gives; call it before each. Another epoch, another order."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """How far the iteration is. A loader of the same arguments that loads this gives the sample that is next here."""
        epoch, position = self._resume or (self._current, self._position)
        return {"epoch": epoch, "position": position, "finished": self._finished, "order": self._order()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state_dict` was called.

        Raises:
            InputError: this is no state of a loader, or that of one with another order; names what differs.
        """
        order = self._order()
        if missing := [name for name in self.state_dict() if name not in state]:
            raise InputError(f"this is no state of a loader: it lacks {missing[0]!r}")
        if different := [name for name, value in order.items() if state["order"].get(name) != value]:
            name = different[0]
            raise InputError(
                f"this state cannot be resumed here: {name} was {state['order'].get(name)!r} and is now {order[name]!r}"
            )
        self._resume = state["epoch"], state["position"]
        self._finished = state["finished"]
        # StatefulDataLoader loads a finished epoch's state after the user has set the next epoch: let that stand.
        self.epoch = max(self.epoch, state["epoch"]) if state["finished"] else state["epoch"]

    def __iter__(self) -> Iterator[Sample]:
        """The samples of the epoch, or after `load_state_dict` the rest of them.

        Raises:
            InputError: there are fewer shards than readers (said at once); a shard is broken or a sample damaged (said
                when it is reached; names the shard and the key).
        """
        self._current, self._position = self._resume or (self.epoch, 0)
        self._resume, self._finished = None, False
        return self._samples(self._portions(self._current, self._reader()), self._current, self._position)

    def _samples(self, dealt: list[list[Portion]], epoch: int, begin: int) -> Iterator[Sample]:
        shuffled = self._shuffle_buffer > 0
        counts = [sum(int(portion.kept.sum()) for portion in of_set) for of_set in dealt]
        reader = self._reader()
        seed_parts = (self._seed, epoch, reader.rank, reader.world_size, reader.worker, reader.workers)
        turns = mixture(counts, shuffled, seeded_generator("mixture", *seed_parts))
        given = np.bincount(turns[:begin], minlength=len(counts))
        streams = []
        for shard_set, of_set, count, first in zip(self._sets, dealt, counts, given, strict=True):
            order = np.arange(count)
            if shuffled:
                order = window_shuffle(
                    count, self._shuffle_buffer, seeded_generator("samples", *seed_parts, shard_set.dataset)
                )
            streams.append(self._stream(shard_set, of_set, order[first:]))
        for turn in turns[begin:]:
            sample = next(streams[turn])
            self._position += 1
            yield sample
        for stream in streams:
            next(stream, None)  # lets each see the end of its last shard
        self._finished = True

    def _stream(self, shard_set: ShardSet, of_set: list[Portion], order: np.ndarray) -> Iterator[Sample]:
        """The samples of a data set in this order; it numbers the kept samples of all portions from front to back."""
        wanted = np.zeros(sum(int(portion.kept.sum()) for portion in of_set), bool)
        wanted[order] = True
        encoded = self._read(shard_set, of_set, wanted)
        held: dict[int, tuple[str, dict[str, Any]]] = {}
        for due in order:
            while due not in held:
                number, url, members = next(encoded)
                held[number] = url, members
            url, members = held.pop(due)
            try:
                sample = decode(members["__key__"], members, self._members, self._chunk)
            except InputError as error:
                raise InputError(f"{url}: {error}; `pixelcli verify` says more") from None
            yield sample
        next(encoded, None)

    def _read(
        self, shard_set: ShardSet, of_set: list[Portion], wanted: np.ndarray
    ) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """The wanted samples, encoded, from front to back: their number, shard and members."""
        number = 0
        for portion in of_set:
            first, number = number, number + int(portion.kept.sum())
            due = np.full(len(portion.kept), -1)
            due[portion.kept] = np.where(wanted[first:number], np.arange(first, number), -1)
            if (due >= 0).any():
                for members, index in zip(self._read_shard(shard_set, portion.shard), due.tolist(), strict=True):
                    if index >= 0:
                        yield index, portion.shard.url, members

    def _read_shard(self, shard_set: ShardSet, shard: Shard) -> Iterator[dict[str, Any]]:
        """All samples of a tar, encoded: the members that are to be decoded. Each must be the one that the index says."""
        wanted = suffixes(self._members)
        expected = (shard_set.key(shard, number) for number in range(len(shard.steps)))
        files = tariterators.tar_file_expander(
            _open_tar(shard.url), select_files=lambda name: name.partition(".")[2] in wanted
        )
        stream = tariterators.group_by_keys(files)
        while True:
            key = next(expected, None)
            try:
                members = next(stream, None)
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                fault = getattr(error, "strerror", None) or (error.args or [error])[0]  # webdataset appends its own
                fault = f"{shard.url} breaks off at {key or 'its end'} ({fault})"
                raise InputError(f"{fault}; `pixelcli verify` says more") from None
            found = members["__key__"] if members else None
            if found != key:
                raise InputError(
                    f"{shard.url} holds {found or 'no more samples'} where the index says {key or 'that it ends'}; "
                    "`pixelcli verify` says more"
                )
            if members is None:
                return
            yield members

    def _portions(self, epoch: int, reader: Reader) -> list[list[Portion]]:
        shuffled = self._shuffle_buffer > 0
        return [
            portions(shard_set, quota, self._seed, epoch, shuffled, reader)
            for shard_set, quota in zip(self._sets, self._quotas, strict=True)
        ]

    def _reader(self) -> Reader:
        """This process among the readers: the user says the rank, torch the worker."""
        _, _, worker, workers = webdataset.utils.pytorch_worker_info()
        return Reader(self._rank, self._world_size, worker, workers)

    def _order(self) -> dict[str, Any]:
        """All that the order of an epoch depends on."""
        return {
            "seed": self._seed,
            "shuffle_buffer": self._shuffle_buffer,
            **dataclasses.asdict(self._reader()),
            "samples": {shard_set.dataset: quota for shard_set, quota in zip(self._sets, self._quotas, strict=True)},
            "content": self._content,
        }


def open_shards(
    sources: str | AnyPath | Sequence[str | AnyPath],
    *,
    members: Collection[str] = tuple(MEMBERS),
    chunk: int = 8,
    split: str | None = None,
    status: str | None = None,
    weights: Mapping[str, float] | None = None,
    shuffle_buffer: int = 1000,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> ShardLoader:
    """Open shards as a stream of samples, for training; the tars are not read yet.

    Args:
        sources: folders with shards, tars, or patterns of tars with braces (`x-{00000..00009}.tar`), local or as URLs;
            manifest.json, index.parquet and dataset_statistics.json lie beside the tars. Several data sets are mixed.
        members: what to decode: image, labels, prompts, actions, state. The other fields of a sample are always there.
        chunk: how many actions each sample has: this step's and those after it.
        split: only samples of this split of the source, such as "train".
        status: only samples of this status, "accepted" or "rejected"; shards built with `--include all` hold both.
        weights: each data set's share of an epoch by its name, relative to the others. Without weights every sample comes
            once. With weights every sample comes at least once, and samples of a set too small for its share repeat.
        shuffle_buffer: how many encoded samples to hold on average for shuffling, of each data set and in each worker;
            shards are shuffled too. 0: nothing is shuffled, samples come as they lie, data set after data set.
        seed: of everything random; the same seed and epoch give the same order.
        epoch: of the first iteration; `set_epoch` says it for the next.
        rank: which of `world_size` processes this is; each gets shards of its own. Leave both at their defaults where one
            process reads for all, as Hugging Face `Trainer` does it for iterable data sets.
        world_size: how many processes read.

    Raises:
        InputError: there are no shards or those of an unknown format, no sample is of the split and status asked for,
            there are fewer shards than ranks, or an argument is out of range.
    """
    if shuffle_buffer < 0:
        raise InputError(f"shuffle_buffer is a number of samples, 0 for none, not {shuffle_buffer}")
    if not 0 <= rank < world_size:
        raise InputError(f"rank {rank} is none of the {world_size} from 0 to {world_size - 1}")
    if status not in (None, ACCEPTED, REJECTED):
        raise InputError(f"status is {ACCEPTED!r}, {REJECTED!r} or None for both, not {status!r}")
    wanted = check_members(members)
    sets = open_sets(sources, split, status)
    for shard_set in sets:
        check_chunk(chunk, shard_set.horizon, shard_set.folder)
    return ShardLoader(sets, wanted, chunk, weights, shuffle_buffer, seed, epoch, rank, world_size)


def _open_tar(url: str) -> Iterator[dict[str, Any]]:
    """A tar as webdataset's readers take it, opened when it is asked for."""
    if opens(url):
        with open_path(url).open("rb") as stream:
            yield {"url": url, "stream": stream}
    else:
        yield from tariterators.url_opener([{"url": url}])


def _fingerprint(sets: Sequence[ShardSet]) -> str:
    """SHA-256 (hex) of which shards are read and which of their samples are wanted."""
    digest = hashlib.sha256()
    for shard_set in sets:
        for shard in shard_set.shards:
            digest.update(f"{shard_set.dataset}/{shard.url.rpartition('/')[2]}/{len(shard.wanted)}".encode())
            digest.update(np.packbits(shard.wanted).tobytes())
    return digest.hexdigest()
