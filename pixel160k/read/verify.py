"""Checks that shards are what their manifest says, and that every sample can be used.

A tar that is cut between two records reads without an error, and readers drop broken samples silently. So checksums and
counts are compared with the manifest, and members, keys, contents and their order are checked one by one: what one shard
holds in `verify_shard.py`, what one sample holds in `verify_sample.py`, the statistics in `verify_statistics.py`.
docs/format.md lists what is checked and what cannot be.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from pixel160k.errors import InputError, one_line
from pixel160k.files import sha256_of
from pixel160k.format import shards
from pixel160k.format.schema import Manifest
from pixel160k.format.statistics import Transitions
from pixel160k.format.table import REASONS, REJECTED
from pixel160k.paths import AnyPath, find_sizes, open_path
from pixel160k.processes import in_order
from pixel160k.read.folder import explain, parse_statistics, read_index, read_unchecked_manifest
from pixel160k.read.verify_sample import View
from pixel160k.read.verify_shard import ShardFindings, ShardTask, check_shard
from pixel160k.read.verify_statistics import check_statistics

_COMPANIONS = ("index.parquet", "dataset_statistics.json", "croissant.json")


def verify(directory: str | AnyPath, workers: int = 1) -> list[str]:
    """Check every byte of a shard directory and return its faults, one line each; none where all is well.

    Args:
        directory: output of `pixelcli build-shards`.
        workers: how many processes check shards, each one shard at a time; the faults and their order are the same. More
            than one are started anew: a script that asks for them runs under `if __name__ == "__main__":`.

    Raises:
        InputError: the directory holds no shards, or shards of an unknown format version, or a process died.
    """
    directory = open_path(directory)
    manifest = read_unchecked_manifest(directory)
    try:
        checked = Manifest.model_validate(manifest)
    except ValidationError as error:
        return [f"manifest.json: {fault}" for fault in explain(error)]
    with Transitions() as transitions:
        faults = _Verification(directory, checked, transitions).run(workers)
    return [" ".join(fault.split()) for fault in faults]


class _Verification:
    """One walk over a shard directory, shard by shard in their order, and what only the whole of it can tell."""

    def __init__(self, directory: AnyPath, manifest: Manifest, transitions: Transitions) -> None:
        self._faults: list[str] = []
        self._directory, self._manifest = directory, manifest
        self._sizes = find_sizes(directory, {*_COMPANIONS, *manifest.files, *(shard.name for shard in manifest.shards)})
        self._statistics = self._read_statistics()
        self._counted = (self._statistics or {}).get("split", "")  # the only one in them; "": all are
        self._index = self._read_index()
        self._indexed = {} if self._index is None else _rows_by_value(self._index["shard"])
        self._episodes: set[str] = set()
        self._transitions = transitions
        self._views, self._seen = Counter[tuple[str, View]](), Counter[str]()

    def run(self, workers: int) -> list[str]:
        """Find the faults: those of the files first, then those in the shards."""
        self._check_manifest()
        self._check_index_order()
        of_files, self._faults = self._faults, []
        there = [shard.name for shard in self._manifest.shards if shard.name in self._sizes]
        digests = {}
        for name, findings in zip(
            there, in_order(check_shard, self._tasks(), min(workers, len(there) or 1)), strict=True
        ):
            digests[name] = findings.sha256
            self._take(name, findings)
        self._check_statistics()
        self._check_cameras()
        in_shards, self._faults = self._faults, of_files
        self._check_files(digests)
        return self._faults + in_shards

    def _fault(self, subject: str, what: str) -> None:
        self._faults.append(f"{subject}: {what}")

    def _tasks(self) -> Iterator[ShardTask]:
        cameras = {name: camera.model_copy(update={"unusable": {}}) for name, camera in self._manifest.cameras.items()}
        lists = {"shards": [], "left_out": {}, "causes": {}, "cameras": cameras}
        manifest = self._manifest.model_copy(update=lists)  # each task holds it
        for shard in self._manifest.shards:
            if shard.name in self._sizes:
                rows = None
                if self._index is not None:
                    rows = self._index.take(self._indexed.get(shard.name, np.zeros(0, int))).to_pylist()
                yield ShardTask(self._directory / shard.name, self._sizes[shard.name], shard, manifest, rows)

    def _take(self, name: str, findings: ShardFindings) -> None:
        """Keep what was found in a shard, and add what only the shards before it tell."""
        self._views += findings.views
        self._seen += findings.seen
        for fault in findings.faults:
            if isinstance(fault, str):
                self._faults.append(fault)
                continue
            if fault.episode_id in self._episodes:
                self._fault(fault.key, "stands apart from the samples of its episode, or twice")
            self._episodes.add(fault.episode_id)
        counted = self._counted in ("", shards.split_of_shard(name))
        if not counted or findings.actions is None or findings.states is None:
            return
        width, known = findings.states.shape[1], self._transitions.state_width
        if known not in (None, width):
            self._fault(name, f"its states have {width} numbers, those of the shards before {known}")
            return
        self._transitions.add(findings.actions, findings.states)

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

    def _check_index_order(self) -> None:
        """The index lists the samples of a shard one after the other, as they lie in it, and each once."""
        if self._index is None:
            return
        offsets = self._index["offset"].to_numpy()
        for name, rows in self._indexed.items():
            if len(rows) and (rows[-1] - rows[0] >= len(rows) or (np.diff(offsets[rows]) <= 0).any()):
                self._fault(
                    "index.parquet", f"does not list the samples of {name} one after the other, as they lie in it"
                )

    def _check_cameras(self) -> None:
        """What the manifest says of further cameras is what the shards hold."""
        if self._manifest.cameras and self._manifest.format_version < shards.WITH_CAMERAS_VERSION:
            self._fault("manifest.json", f"has cameras, which version {self._manifest.format_version} does not know")
        for name, camera in self._manifest.cameras.items():
            images, sizes = Counter[str](), set()
            for (of_camera, view), count in self._views.items():
                if of_camera == name:
                    images[view.form] += count
                    sizes.add((view.height, view.width))
            said = [camera.episodes, camera.images, camera.sizes]
            found = [self._seen[name], dict(images), [list(size) for size in sorted(sizes)]]
            if said != found:
                self._fault(
                    "manifest.json", f"says {said} of {name} (episodes, images, sizes), the shards hold {found}"
                )
            accounted = camera.episodes + camera.blank + len(camera.unusable)
            if accounted != self._manifest.episodes:
                self._fault(
                    "manifest.json", f"accounts for {name} in {accounted} of {self._manifest.episodes} episodes"
                )

    def _check_files(self, found: dict[str, str]) -> None:
        """Compare checksums with the manifest's; `found` holds those of the shards."""
        digests = self._manifest.files | {shard.name: shard.sha256 for shard in self._manifest.shards}
        for name, digest in digests.items():
            if name not in self._sizes:
                self._fault(name, "missing")
            elif (found.get(name) or sha256_of(self._directory / name)) != digest:
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
        if self._statistics is None or not len(self._transitions):
            return
        episodes = sum(self._counted in ("", shards.split_of(episode_id)) for episode_id in self._episodes)
        for fault in check_statistics(self._statistics, self._transitions, episodes):
            self._fault("dataset_statistics.json", fault)


def _rows_by_value(column: pa.ChunkedArray) -> dict[str, np.ndarray]:
    """Of each value of a dictionary column the rows that have it, in order: one walk, however many values there are."""
    if not len(column):
        return {}
    values, codes = column.chunk(0).dictionary.to_pylist(), column.chunk(0).indices.to_numpy()
    ends = np.cumsum(np.bincount(codes, minlength=len(values)))
    return dict(zip(values, np.split(np.argsort(codes, kind="stable"), ends[:-1]), strict=True))
