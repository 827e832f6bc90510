"""Where shards are and what they hold, for the loader: folders, tars and URLs, with the manifest, index and statistics.

Every way of naming shards ends at their folder, since manifest and index lie there: they give the format version, the
number of samples and thereby an order that can be computed before a tar is opened. Local folders and URLs are read in
the same way, by `webdataset`.
"""

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import webdataset

from pixel160k.errors import InputError
from pixel160k.format import shards


@dataclass(frozen=True)
class Shard:
    """One tar, and of each of its samples in their order which it is and whether it is wanted."""

    url: str
    episodes: np.ndarray  # int32 (samples,), places in the set's episode_ids
    steps: np.ndarray  # int32 (samples,)
    wanted: np.ndarray  # bool (samples,)


@dataclass(frozen=True)
class ShardSet:
    """The shards of one data set that hold a wanted sample."""

    folder: str
    dataset: str
    horizon: int  # actions a sample
    episode_ids: list[str]
    shards: list[Shard]

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """The data set's own statistics, with OpenVLA's names."""
        try:
            return json.loads(_content(f"{self.folder}/dataset_statistics.json"))[self.dataset]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.folder}/dataset_statistics.json holds no statistics of {self.dataset}; build these shards again"
            ) from None

    @cached_property
    def samples(self) -> int:
        """How many samples are wanted."""
        return sum(int(shard.wanted.sum()) for shard in self.shards)

    def key(self, shard: Shard, number: int) -> str:
        """The key of a shard's sample of this number."""
        return shards.sample_key(self.episode_ids[shard.episodes[number]], int(shard.steps[number]))


def open_sets(sources: str | Path | Sequence[str | Path], split: str | None, status: str | None) -> list[ShardSet]:
    """The shard sets that these sources name, each data set once, in the order of the sources.

    Args:
        sources: folders, tars, or patterns of tars with braces (`x-{00000..00009}.tar`), local or as URLs.
        split: only samples of this split.
        status: only samples of this status, "accepted" or "rejected".

    Raises:
        InputError: nothing is there, or nothing that is wanted; a data set lies in two folders.
    """
    folders: dict[str, set[str]] = {}  # with the tars asked for; empty where all are
    for place in _expand([sources] if isinstance(sources, str | Path) else sources):
        folder, _, name = place.rpartition("/") if place.endswith(".tar") else (place.rstrip("/"), "", "")
        asked = folders.setdefault(folder or ".", set())
        if name:
            asked.add(name)
    if not folders:
        raise InputError("no shards were named; give a folder, tars, or URLs of tars")
    sets: dict[str, ShardSet] = {}
    for folder, names in folders.items():
        opened = _open(folder, names, split, status)
        if opened.dataset in sets:
            raise InputError(
                f"{folder} and {sets[opened.dataset].folder} both hold {opened.dataset}; "
                "a data set is read from one folder"
            )
        sets[opened.dataset] = opened
    return list(sets.values())


def _expand(sources: Sequence[str | Path]) -> Iterator[str]:
    for source in sources:
        if str(source).startswith("pipe:"):
            raise InputError(f"{source}: commands are not run; give folders, tars, or URLs of tars")
        yield from braceexpand.braceexpand(str(source))


def _content(url: str) -> bytes:
    with webdataset.gopen(url) as stream:
        return stream.read()


def _open(folder: str, names: set[str], split: str | None, status: str | None) -> ShardSet:
    try:
        content = _content(f"{folder}/manifest.json")
    except OSError:
        content = b""
    manifest = shards.parse_manifest(content, folder)
    counts = {entry["name"]: entry["samples"] for entry in manifest["shards"]}
    if missing := sorted(names - set(counts)):
        raise InputError(f"{folder}/manifest.json lists no {missing[0]}")
    index = _read_index(folder)
    episode_ids = index["episode_id"].chunk(0).dictionary.to_pylist() if len(index) else []
    episodes, steps = _codes(index["episode_id"]), index["step"].to_numpy()
    wanted = _wanted(index, episode_ids, split, status)
    found = []
    for name, start, stop in _runs(index["shard"]):
        if counts.get(name) != stop - start:
            fault = f"{folder}/index.parquet lists {stop - start} samples of {name}, the manifest {counts.get(name, 0)}"
            raise InputError(f"{fault}; `pixelcli verify` says more")
        if (not names or name in names) and wanted[start:stop].any():
            found.append(Shard(f"{folder}/{name}", episodes[start:stop], steps[start:stop], wanted[start:stop]))
    if not found:
        asked = "".join(f", {what} {value!r}" for what, value in (("split", split), ("status", status)) if value)
        raise InputError(f"{folder} holds no sample of what is asked for (data set {manifest['dataset']!r}{asked})")
    return ShardSet(folder, manifest["dataset"], manifest["horizon"], episode_ids, found)


def _read_index(folder: str) -> pa.Table:
    url = f"{folder}/index.parquet"
    try:
        content = _content(url)
    except OSError as error:
        raise InputError(f"{url} cannot be read ({error}); build these shards again") from None
    return shards.read_index_table(io.BytesIO(content), url, ["episode_id", "step", "status", "shard"])


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """The values of a dictionary column as their places in the dictionary, int32 (rows,)."""
    return column.chunk(0).indices.to_numpy() if len(column) else np.zeros(0, np.int32)


def _runs(column: pa.ChunkedArray) -> Iterator[tuple[str, int, int]]:
    """Each value of a dictionary column with the rows, start and stop, that it stands in."""
    codes = _codes(column)
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            yield column[start].as_py(), start, stop


def _wanted(index: pa.Table, episode_ids: list[str], split: str | None, status: str | None) -> np.ndarray:
    """bool (rows,): the samples of this split and status."""
    wanted = np.ones(len(index), bool)
    if status is not None:
        wanted &= pc.equal(index["status"].cast(pa.string()), status).to_numpy()
    if split is not None:
        of_split = np.array([shards.split_of(episode_id) == split for episode_id in episode_ids], bool)
        wanted &= of_split[_codes(index["episode_id"])]
    return wanted
