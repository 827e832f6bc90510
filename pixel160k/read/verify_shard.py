"""The check of one shard, which needs nothing of any other: so several processes can check shards side by side.

What only the whole directory can tell (an episode in two shards, the statistics) is handed on: `ShardFindings`.
"""

import dataclasses
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pixel160k.files import sha256_of
from pixel160k.format.schema import Manifest, ShardEntry
from pixel160k.owner import TEMPORARY
from pixel160k.paths import AnyPath
from pixel160k.read.verify_sample import StoredSample, View, check_sample, stored_samples
from pixel160k.stores import StorePath


@dataclass(frozen=True)
class ShardTask:
    """A shard to check.

    Attributes:
        path: of the tar, which is there.
        size: its bytes.
        entry: what the manifest says of it.
        manifest: of the directory; its shards and the episodes left out may be missing here.
        rows: its rows of the index, each by column; None where there is no index to compare with.
    """

    path: AnyPath
    size: int
    entry: ShardEntry
    manifest: Manifest
    rows: list[dict[str, Any]] | None


@dataclass(frozen=True)
class EpisodeBegins:
    """Stands among the faults where a sample begins an episode: `key` is the sample's."""

    key: str
    episode_id: str


@dataclass
class ShardFindings:
    """What was found in a shard.

    Attributes:
        sha256: of the tar.
        faults: one line each, in the order of the samples, and between them where each episode begins.
        actions: float32 (samples, 7), the actions of the samples, where those could be read;
        states: float32 (samples, S), their states; None where there are none, or their widths differ.
        views: how many images further cameras have, by camera, form and size.
        seen: how many episodes have each further camera.
    """

    sha256: str = ""
    faults: list[str | EpisodeBegins] = field(default_factory=list)
    actions: np.ndarray | None = None
    states: np.ndarray | None = None
    views: Counter[tuple[str, View]] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)


def check_shard(task: ShardTask) -> ShardFindings:
    """Check every byte of a shard. One of a store lies on the local disk meanwhile, since it is read twice.

    Raises:
        OSError: the store does not give it, or the disk is full.
    """
    if not isinstance(task.path, StorePath):
        return _Check(task).run()
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
        local = Path(folder, task.path.name)
        with open(local, "wb") as file:
            file.writelines(task.path.pieces(0, task.size))
        return _Check(dataclasses.replace(task, path=local)).run()


class _Check:
    """One walk over a tar, sample by sample."""

    def __init__(self, task: ShardTask) -> None:
        self._task, self._name = task, task.entry.name
        self._found = ShardFindings(sha256_of(task.path))

    def run(self) -> ShardFindings:
        """Find the faults."""
        task = self._task
        if task.size != task.entry.bytes:
            self._fault(self._name, f"{task.size} bytes, the manifest says {task.entry.bytes}")
        rows: list[dict[str, Any]] = []
        actions, states = [], []
        previous: StoredSample | None = None
        for sample in stored_samples(task.path, task.manifest.cameras, self._fault):
            check_sample(sample, task.manifest, self._fault)
            self._found.views.update((camera, view) for camera, view in sample.views.items() if view)
            self._check_order(previous, sample)
            if sample.chunk is not None and sample.state is not None:
                actions.append(sample.chunk[0].copy())  # a view would keep the whole chunk
                states.append(sample.state)
            rows.append(
                {
                    "key": sample.key,
                    "episode_id": sample.episode_id,
                    "step": sample.step,
                    "status": sample.metadata.status if sample.metadata else None,
                    "shard": self._name,
                    "offset": sample.offset,
                    "bytes": sample.length,
                }
            )
            previous = sample
        self._check_end(previous)
        if len(rows) != task.entry.samples:
            self._fault(self._name, f"{len(rows)} samples, the manifest says {task.entry.samples}")
        if task.rows is not None:
            self._check_index(task.rows, rows)
        source_file = f"{self._name.removesuffix('.tar')}-"
        if strangers := [row["key"] for row in rows if not row["key"].startswith(source_file)]:
            self._fault(self._name, f"holds {strangers[0]}, which is of another source file than the tar's name says")
        if len({state.shape for state in states}) == 1:
            return dataclasses.replace(self._found, actions=np.stack(actions), states=np.stack(states))
        return self._found

    def _fault(self, subject: str, what: str) -> None:
        self._found.faults.append(f"{subject}: {what}")

    def _check_order(self, previous: StoredSample | None, sample: StoredSample) -> None:
        """Samples follow each other step by step, and their action chunks overlap."""
        if previous is None or previous.episode_id != sample.episode_id:
            self._check_end(previous)
            self._found.faults.append(EpisodeBegins(sample.key, sample.episode_id))
            self._found.seen.update(sample.views.keys())
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
        for camera in sorted(previous.views.keys() | sample.views.keys()):
            views = [view[1:] if (view := one.views.get(camera)) else None for one in (previous, sample)]
            if (camera in previous.views) != (camera in sample.views):
                self._fault(sample.key, f"{camera} is here or at the step before, but not at both")
            elif None not in views and views[0] != views[1]:
                self._fault(sample.key, f"{camera} has another size than at the step before")
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

    def _check_index(self, listed: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        """The index rows of a shard are its samples, with the very offsets and lengths."""
        indexed = {row["key"]: row for row in listed}
        for row in rows:
            found = indexed.pop(row["key"], None)
            if found is None:
                self._fault(row["key"], "in a shard, not in the index")
            elif different := [column for column, value in row.items() if value not in (None, found[column])]:
                self._fault(row["key"], f"the index has another {', '.join(different)}")
        for key in sorted(indexed):
            self._fault(key, "in the index, in no shard")
