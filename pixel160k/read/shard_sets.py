"""Where shards are and what they hold, for the loader: folders, tars and URLs, with the manifest, index and statistics.

Every way of naming shards ends at their folder, since manifest and index lie there. They say which samples each tar
holds, so the order of an epoch can be computed before a tar is opened.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pixel160k.errors import InputError, one_line
from pixel160k.format import shards
from pixel160k.paths import AnyPath, open_path
from pixel160k.read.folder import read_index, read_manifest, read_statistics


@dataclass(frozen=True)
class Shard:
    """One tar: where it is, and which samples it holds, in their order.

    Attributes:
        path: where it is.
        bytes: its size by the manifest.
        sha256: its digest by the manifest.
        episodes: int32 (samples,), indices into the set's `episode_ids`.
        steps: int32 (samples,), raw steps.
        wanted: bool (samples,), whether a sample is of the split and status asked for.
        blocks: int32 (samples + 1,), where each sample begins in the tar, in blocks of 512 bytes, and where the last ends.
    """

    path: AnyPath
    bytes: int
    sha256: str
    episodes: np.ndarray
    steps: np.ndarray
    wanted: np.ndarray
    blocks: np.ndarray


@dataclass(frozen=True)
class ShardSet:
    """The shards of one data set that hold a wanted sample.

    Attributes:
        folder: where they are.
        dataset: the data set's name.
        horizon: how many actions each sample has in the tars.
        cameras: the further cameras that samples may have images of.
        episode_ids: of all episodes in the index.
        shards: in the order of the index.
    """

    folder: AnyPath
    dataset: str
    horizon: int
    cameras: tuple[str, ...]
    episode_ids: list[str]
    shards: list[Shard]

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """The data set's own statistics, with OpenVLA's names.

        Raises:
            InputError: dataset_statistics.json is missing or does not hold them.
        """
        return read_statistics(self.folder, self.dataset)

    @cached_property
    def samples(self) -> int:
        """How many samples are wanted."""
        return sum(int(shard.wanted.sum()) for shard in self.shards)

    def key(self, shard: Shard, number: int) -> str:
        """The key of a shard's sample by its number in the tar, from 0."""
        return shards.sample_key(self.episode_ids[shard.episodes[number]], int(shard.steps[number]))

    def first_before(self, shard: Shard, number: int, history: int) -> int:
        """Of a shard's sample by its number and up to `history` steps before it in its episode, the number of the first.

        Raises:
            InputError: the index lacks a step between them.
        """
        first = number
        while number - first < history and first and shard.episodes[first - 1] == shard.episodes[number]:
            first -= 1
        if shard.steps[number] - shard.steps[first] != number - first:
            fault = f"{self.folder}/index.parquet lacks a step before {self.key(shard, number)}"
            raise InputError(f"{fault}; `pixelcli verify` says more")
        return first


def open_sets(
    sources: str | AnyPath | Sequence[str | AnyPath], split: str | None, status: str | None
) -> list[ShardSet]:
    """Read which shards these sources name: one set per data set, in the order of the sources.

    Args:
        sources: folders, tars, or patterns of tars with braces (`x-{00000..00009}.tar`), local or as URLs.
        split: only samples of this split.
        status: only samples of this status, "accepted" or "rejected".

    Raises:
        InputError: there is no shard or no wanted sample, a manifest or index is damaged, or a data set lies in two
            folders.
    """
    folders: dict[AnyPath, set[str]] = {}  # with the tars asked for; "" stands for all
    for path in _expand([sources] if isinstance(sources, str | AnyPath) else sources):
        tar = path.suffix == ".tar"
        folders.setdefault(path.parent if tar else path, set()).add(path.name if tar else "")
    if not folders:
        raise InputError("no shards were named; give a folder, tars, or URLs of tars")
    sets: dict[str, ShardSet] = {}
    for folder, names in folders.items():
        opened = _open_set(folder, set() if "" in names else names, split, status)
        if opened.dataset in sets:
            raise InputError(
                f"{folder} and {sets[opened.dataset].folder} both hold {opened.dataset}; "
                "a data set is read from one folder"
            )
        sets[opened.dataset] = opened
    return list(sets.values())


def _expand(sources: Sequence[str | AnyPath]) -> Iterator[AnyPath]:
    for source in sources:
        if not isinstance(source, str) or Path(source).exists():  # a name may hold braces
            yield open_path(source)
            continue
        if source.startswith("pipe:"):
            raise InputError(f"{source}: commands are not run; give folders, tars, or URLs of tars")
        try:
            texts = list(braceexpand.braceexpand(source))
        except ValueError as error:  # braceexpand's own UnbalancedBracesError
            raise InputError(f"{source} is no pattern: {one_line(error)}") from None
        yield from map(open_path, texts)


def _open_set(folder: AnyPath, names: set[str], split: str | None, status: str | None) -> ShardSet:
    manifest = read_manifest(folder)
    entries = {entry["name"]: entry for entry in manifest["shards"]}
    if missing := sorted(names - set(entries)):
        raise InputError(f"{folder}/manifest.json lists no {missing[0]}")
    index = read_index(folder, ["episode_id", "step", "status", "shard", "offset", "bytes"])
    episode_ids = index["episode_id"].chunk(0).dictionary.to_pylist() if len(index) else []
    episodes, steps = _codes(index["episode_id"]), index["step"].to_numpy()
    offsets, lengths = index["offset"].to_numpy(), index["bytes"].to_numpy()
    wanted = _wanted(index, episode_ids, split, status)
    found = []
    for name, start, stop in _runs(index["shard"]):
        entry = entries.get(name, {"samples": 0})
        if entry["samples"] != stop - start:
            fault = f"{folder}/index.parquet lists {stop - start} samples of {name}, the manifest {entry['samples']}"
            raise InputError(f"{fault}; `pixelcli verify` says more")
        if (not names or name in names) and wanted[start:stop].any():
            rows = slice(start, stop)
            blocks = _blocks(offsets[rows], lengths[rows], f"{folder}/index.parquet: {name}")
            size, sha256 = entry["bytes"], entry["sha256"]
            found.append(Shard(folder / name, size, sha256, episodes[rows], steps[rows], wanted[rows], blocks))
    if not found:
        asked = "".join(f", {what} {value!r}" for what, value in (("split", split), ("status", status)) if value)
        fault = f"{folder} holds no sample of what is asked for (data set {manifest['dataset']!r}{asked})"
        splits = shards.order_splits(map(shards.split_of, episode_ids))
        raise InputError(f"{fault}; it has the splits {', '.join(splits)}" if split and split not in splits else fault)
    cameras = tuple(manifest.get("cameras", ()))
    return ShardSet(folder, manifest["dataset"], manifest["horizon"], cameras, episode_ids, found)


def _blocks(offsets: np.ndarray, lengths: np.ndarray, where: str) -> np.ndarray:
    """Where samples lie in a tar, in half the memory of the index: one follows the other, in whole blocks."""
    edges = np.append(offsets, offsets[-1] + lengths[-1])
    if offsets[0] < 0 or (lengths <= 0).any() or (edges[1:] - edges[:-1] != lengths).any() or (edges % 512).any():
        raise InputError(f"{where}: the samples do not lie one after the other; `pixelcli verify` says more")
    return (edges // 512).astype(np.int32)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """The values of a dictionary column as indices into the dictionary, int32 (rows,)."""
    return column.chunk(0).indices.to_numpy() if len(column) else np.zeros(0, np.int32)


def _runs(column: pa.ChunkedArray) -> Iterator[tuple[str, int, int]]:
    """Each run of equal values of a dictionary column: the value, its first row, and the row after its last."""
    codes = _codes(column)
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            yield column[start].as_py(), start, stop


def _wanted(index: pa.Table, episode_ids: list[str], split: str | None, status: str | None) -> np.ndarray:
    """bool (rows,): which rows of the index are of this split and status."""
    wanted = np.ones(len(index), bool)
    if status is not None:
        wanted &= pc.equal(index["status"].cast(pa.string()), status).to_numpy()
    if split is not None:
        of_split = np.array([shards.split_of(episode_id) == split for episode_id in episode_ids], bool)
        wanted &= of_split[_codes(index["episode_id"])]
    return wanted
