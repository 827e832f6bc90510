"""Checks that shards are what their manifest says, and that every sample can be used.

A tar that is cut between two records reads without an error, and readers drop broken samples silently. So checksums and
counts are compared with the manifest, and members, keys, contents and their order are checked one by one: what one sample
holds in `verify_sample.py`, the statistics in `verify_statistics.py`. docs/format.md lists what is checked and what cannot
be.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from pixel160k.errors import InputError, one_line
from pixel160k.files import sha256_of
from pixel160k.format import shards
from pixel160k.format.schema import Manifest, ShardEntry
from pixel160k.format.table import REASONS, REJECTED
from pixel160k.paths import AnyPath, find_sizes, open_path
from pixel160k.read.folder import explain, parse_statistics, read_index, read_unchecked_manifest
from pixel160k.read.verify_sample import StoredSample, check_sample, stored_samples
from pixel160k.read.verify_statistics import check_statistics

_COMPANIONS = ("index.parquet", "dataset_statistics.json", "croissant.json")


def verify(directory: str | AnyPath) -> list[str]:
    """Check every byte of a shard directory and return its faults, one line each; none where all is well.

    Raises:
        InputError: the directory holds no shards, or shards of an unknown format version.
    """
    directory = open_path(directory)
    manifest = read_unchecked_manifest(directory)
    try:
        verification = _Verification(directory, Manifest.model_validate(manifest))
    except ValidationError as error:
        return [f"manifest.json: {fault}" for fault in explain(error)]
    verification.run()
    return [" ".join(fault.split()) for fault in verification.faults]


class _Verification:
    """One walk over a shard directory: shard by shard, sample by sample, in their order. It collects `faults`."""

    def __init__(self, directory: AnyPath, manifest: Manifest) -> None:
        self.faults: list[str] = []
        self._directory, self._manifest = directory, manifest
        self._sizes = find_sizes(directory, {*_COMPANIONS, *manifest.files, *(shard.name for shard in manifest.shards)})
        self._statistics = self._read_statistics()
        self._counted = (self._statistics or {}).get("split", "")  # the only one in them; "": all are
        self._index = self._read_index()
        self._indexed = {} if self._index is None else _rows_by_value(self._index["shard"])
        self._episodes: set[str] = set()
        self._actions: list[np.ndarray] = []  # one array per shard: float32 (samples, 7),
        self._states: list[np.ndarray] = []  # and float32 (samples, S)

    def run(self) -> None:
        """Find the faults."""
        self._check_manifest()
        self._check_files()
        for shard in self._manifest.shards:
            if shard.name in self._sizes:
                self._check_shard(shard)
        self._check_statistics()

    def _fault(self, subject: str, what: str) -> None:
        self.faults.append(f"{subject}: {what}")

    def _check_manifest(self) -> None:
        manifest = self._manifest
        if (listed := sum(shard.samples for shard in manifest.shards)) != manifest.samples:
            self._fault("manifest.json", f"{manifest.samples} samples, its shards have {listed}")
        unknown = {*manifest.left_out.values(), *manifest.annotated.reasons} - set(REASONS)
        if unknown:
            self._fault("manifest.json", f"unknown reason {min(unknown)!r}")
        status = manifest.annotated.status
        usable = sum(count for name, count in status.items() if manifest.include == "all" or name != REJECTED)
        if usable != manifest.episodes + len(manifest.left_out):
            self._fault(
                "manifest.json",
                f"{usable} episodes were to be written, but {manifest.episodes} are here and "
                f"{len(manifest.left_out)} left out",
            )
        for name in _COMPANIONS:
            if name not in manifest.files:
                self._fault("manifest.json", f"lacks the checksum of {name}")

    def _check_files(self) -> None:
        digests = self._manifest.files | {shard.name: shard.sha256 for shard in self._manifest.shards}
        for name, digest in digests.items():
            if name not in self._sizes:
                self._fault(name, "missing")
            elif sha256_of(self._directory / name) != digest:
                self._fault(name, "differs from the manifest's SHA-256")
        for name in sorted(self._sizes):
            if name.endswith(".tar") and name not in digests:
                self._fault(name, "not in the manifest")

    def _read_index(self) -> pa.Table | None:
        if "index.parquet" not in self._sizes:
            return None
        try:
            return read_index(self._directory)
        except InputError as error:
            self._fault("index.parquet", one_line(error))
            return None

    def _check_shard(self, shard: ShardEntry) -> None:
        if (size := self._sizes[shard.name]) != shard.bytes:
            self._fault(shard.name, f"{size} bytes, the manifest says {shard.bytes}")
        rows: list[dict[str, Any]] = []
        actions, states = [], []
        previous: StoredSample | None = None
        for sample in stored_samples(self._directory / shard.name, self._fault):
            check_sample(sample, self._manifest, self._fault)
            self._check_order(previous, sample)
            if sample.chunk is not None and sample.state is not None:
                actions.append(sample.chunk[0])
                states.append(sample.state)
            rows.append(
                {
                    "key": sample.key,
                    "episode_id": sample.episode_id,
                    "step": sample.step,
                    "status": sample.metadata.status if sample.metadata else None,
                    "shard": shard.name,
                    "offset": sample.offset,
                    "bytes": sample.length,
                }
            )
            previous = sample
        self._check_end(previous)
        if len(rows) != shard.samples:
            self._fault(shard.name, f"{len(rows)} samples, the manifest says {shard.samples}")
        self._check_index(shard.name, rows)
        source_file = f"{shard.name.removesuffix('.tar')}-"
        if strangers := [row["key"] for row in rows if not row["key"].startswith(source_file)]:
            self._fault(shard.name, f"holds {strangers[0]}, which is of another source file than the tar's name says")
        counted = self._counted in ("", shards.split_of_shard(shard.name))
        if counted and len({state.shape for state in states}) == 1:
            self._keep_transitions(shard.name, np.stack(actions), np.stack(states))

    def _keep_transitions(self, name: str, actions: np.ndarray, states: np.ndarray) -> None:
        if self._states and self._states[0].shape[1] != states.shape[1]:
            known = self._states[0].shape[1]
            self._fault(name, f"its states have {states.shape[1]} numbers, those of the shards before {known}")
            return
        self._actions.append(actions)
        self._states.append(states)

    def _check_order(self, previous: StoredSample | None, sample: StoredSample) -> None:
        """Samples follow each other step by step, and their action chunks overlap."""
        if previous is None or previous.episode_id != sample.episode_id:
            self._check_end(previous)
            if sample.episode_id in self._episodes:
                self._fault(sample.key, "stands apart from the samples of its episode, or twice")
            self._episodes.add(sample.episode_id)
            if sample.metadata and sample.step != sample.metadata.first_step:
                self._fault(sample.key, f"its episode lacks the steps from {sample.metadata.first_step} on")
            return
        if sample.step != previous.step + 1:
            self._fault(sample.key, f"follows {previous.key}: a sample is missing, doubled or out of place")
            return
        if previous.metadata and sample.metadata:
            first, second = previous.metadata.of_episode(), sample.metadata.of_episode()
            if different := [name for name, value in first.items() if second[name] != value]:
                self._fault(sample.key, f"another {', '.join(different)} than at the step before")
        # Row i of a step's chunk is row 0 of the step i later. After the last step the robot stands still.
        chunks = previous.chunk, sample.chunk
        if chunks[0] is not None and chunks[1] is not None and not np.array_equal(chunks[0][1:], chunks[1][:-1]):
            self._fault(sample.key, "its action chunk does not continue that of the step before")
        if previous.state is not None and sample.state is not None and previous.state.shape != sample.state.shape:
            self._fault(
                sample.key, f"state.npy has the shape {sample.state.shape}, before it was {previous.state.shape}"
            )

    def _check_end(self, last: StoredSample | None) -> None:
        """The last sample of an episode is that of its last step, and no motion follows."""
        if last is None or last.metadata is None:
            return
        if last.step != last.metadata.last_step:
            self._fault(last.key, f"its episode lacks the steps after it, to {last.metadata.last_step}")
        elif last.chunk is not None:
            still = np.zeros_like(last.chunk[1:])
            still[:, 6] = last.chunk[0, 6]
            if not np.array_equal(last.chunk[1:], still):
                self._fault(last.key, "its action chunk moves on behind the last step")

    def _check_index(self, name: str, rows: list[dict[str, Any]]) -> None:
        """The index rows of a shard are its samples, with the very offsets and lengths."""
        if self._index is None:
            return
        indexed = {row["key"]: row for row in self._index.take(self._indexed.get(name, np.zeros(0, int))).to_pylist()}
        for row in rows:
            listed = indexed.pop(row["key"], None)
            if listed is None:
                self._fault(row["key"], "in a shard, not in the index")
            elif different := [column for column, value in row.items() if value not in (None, listed[column])]:
                self._fault(row["key"], f"the index has another {', '.join(different)}")
        for key in sorted(indexed):
            self._fault(key, "in the index, in no shard")

    def _read_statistics(self) -> dict[str, Any] | None:
        if (name := "dataset_statistics.json") not in self._sizes:
            return None
        try:
            return parse_statistics((self._directory / name).read_bytes(), self._manifest.dataset)
        except InputError as error:
            self._fault(name, one_line(error))
            return None

    def _check_statistics(self) -> None:
        if len(self._episodes) != self._manifest.episodes:
            self._fault("manifest.json", f"{self._manifest.episodes} episodes, the shards have {len(self._episodes)}")
        if self._statistics is None or not self._states:
            return
        actions, states = np.concatenate(self._actions), np.concatenate(self._states)
        episodes = sum(self._counted in ("", shards.split_of(episode_id)) for episode_id in self._episodes)
        for fault in check_statistics(self._statistics, actions, states, episodes):
            self._fault("dataset_statistics.json", fault)


def _rows_by_value(column: pa.ChunkedArray) -> dict[str, np.ndarray]:
    """Of each value of a dictionary column the rows that have it, in order: one walk, however many values there are."""
    if not len(column):
        return {}
    values, codes = column.chunk(0).dictionary.to_pylist(), column.chunk(0).indices.to_numpy()
    ends = np.cumsum(np.bincount(codes, minlength=len(values)))
    return dict(zip(values, np.split(np.argsort(codes, kind="stable"), ends[:-1]), strict=True))
