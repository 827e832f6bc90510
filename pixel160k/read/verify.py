"""Checks that shards are what their manifest says, and that every sample can be used.

A tar that is cut between two records reads without an error, and readers drop broken samples silently; so checksums and
counts are compared with the manifest, and members, keys, contents and their order one by one. docs/format.md lists what
is checked and what cannot be.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pydantic import ValidationError

from pixel160k.errors import InputError
from pixel160k.files import sha256_of
from pixel160k.format import masks, shards
from pixel160k.format.actions import ACTION_DIMENSIONS, dataset_statistics
from pixel160k.format.metadata import Metadata
from pixel160k.format.schema import Manifest, ShardEntry, check_metadata
from pixel160k.format.table import ACCEPTED, CONTRADICTED, NOT_APPLICABLE, REASONS, REJECTED, SUPPORTED

_KEY = re.compile(r"(?P<episode>[A-Za-z0-9_]+-[A-Za-z0-9_]+-\d{5}-\d{5})-(?P<step>\d{4,})")
_BLOCK = tarfile.BLOCKSIZE
_LABELS = {masks.BACKGROUND, masks.GRIPPER, masks.TARGET, masks.NOT_ANNOTATED}


@dataclass
class _Sample:
    """One sample; None where a member could not be read."""

    key: str
    offset: int
    members: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    metadata: Metadata | None = None
    chunk: np.ndarray | None = None
    state: np.ndarray | None = None

    @property
    def episode_id(self) -> str:
        return self.key.rpartition("-")[0]

    @property
    def step(self) -> int:
        return int(self.key.rpartition("-")[2])


def verify(directory: str | Path) -> list[str]:
    """Check a shard directory and return its faults, one line each; none where all is well.

    Raises:
        InputError: the directory holds no shards, or shards of an unknown format version.
    """
    directory = Path(directory)
    manifest = shards.read_manifest(directory)
    try:
        verification = _Verification(directory, Manifest.model_validate(manifest))
    except ValidationError as error:
        return [f"manifest.json: {fault}" for fault in _explain(error)]
    verification.run()
    return [" ".join(fault.split()) for fault in verification.faults]


def _explain(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        yield f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


class _Verification:
    """One walk over a shard directory: shard by shard, sample by sample, in their order."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.faults: list[str] = []
        self._directory, self._manifest = directory, manifest
        self._statistics = self._read_statistics()
        self._index = self._read_index()
        self._episodes: set[str] = set()
        self._transitions: list[tuple[np.ndarray, np.ndarray]] = []  # actions and states, a pair a shard

    def run(self) -> None:
        """Find the faults."""
        self._check_manifest()
        self._check_files()
        for shard in self._manifest.shards:
            path = self._directory / shard.name
            if path.is_file():
                self._check_shard(path, shard)
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
        for name in ("index.parquet", "dataset_statistics.json", "croissant.json"):
            if name not in manifest.files:
                self._fault("manifest.json", f"lacks the checksum of {name}")

    def _check_files(self) -> None:
        digests = self._manifest.files | {shard.name: shard.sha256 for shard in self._manifest.shards}
        for name, digest in digests.items():
            path = self._directory / name
            if not path.is_file():
                self._fault(name, "missing")
            elif sha256_of(path) != digest:
                self._fault(name, "differs from the manifest's SHA-256")
        for path in sorted(self._directory.glob("*.tar")):
            if path.name not in digests:
                self._fault(path.name, "not in the manifest")

    def _read_index(self) -> pa.Table | None:
        path = self._directory / "index.parquet"
        try:
            return pq.read_table(path, schema=shards.INDEX_SCHEMA) if path.is_file() else None
        except (OSError, pa.ArrowException) as error:
            self._fault("index.parquet", f"cannot be read ({error})")
            return None

    def _check_shard(self, path: Path, shard: ShardEntry) -> None:
        if (size := path.stat().st_size) != shard.bytes:
            self._fault(shard.name, f"{size} bytes, the manifest says {shard.bytes}")
        rows: list[dict[str, Any]] = []
        actions, states = [], []
        previous: _Sample | None = None
        for sample in self._read_samples(path):
            self._check_sample(sample)
            self._check_order(previous, sample)
            if sample.chunk is not None and sample.state is not None:
                actions.append(sample.chunk[0])
                states.append(sample.state)
            status = sample.metadata.status if sample.metadata else None
            rows.append(
                {
                    "key": sample.key,
                    "episode_id": sample.episode_id,
                    "step": sample.step,
                    "status": status,
                    "shard": shard.name,
                    "offset": sample.offset,
                    "bytes": sample.size,
                }
            )
            previous = sample
        self._check_end(previous)
        if len(rows) != shard.samples:
            self._fault(shard.name, f"{len(rows)} samples, the manifest says {shard.samples}")
        self._check_index(shard.name, rows)
        if len({state.shape for state in states}) == 1:
            self._transitions.append((np.stack(actions), np.stack(states)))

    def _read_samples(self, path: Path) -> Iterator[_Sample]:
        """The samples of a tar: neighbouring members of one key. Nothing is ever unpacked to the disk."""
        sample: _Sample | None = None
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, _, suffix = member.name.partition(".")
                    if not member.isfile():
                        self._fault(path.name, f"{member.name!r} is no regular file")
                        continue
                    if not _KEY.fullmatch(key) or suffix not in shards.MEMBERS:
                        self._fault(path.name, f"foreign member {member.name!r}")
                        continue
                    if sample is None or key != sample.key:
                        if sample is not None:
                            yield sample
                        sample = _Sample(key, member.offset)
                    if suffix in sample.members:
                        self._fault(key, f"member {suffix} stands twice")
                    content = tar.extractfile(member)
                    sample.members[suffix] = content.read() if content else b""
                    end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                    sample.size = end - sample.offset
                end_of_archive = tar.offset
            with open(path, "rb") as file:
                file.seek(end_of_archive)
                rest = file.read()
            if len(rest) < 2 * _BLOCK or any(rest):
                self._fault(path.name, "does not end as a tar ends: it was cut, or something was appended")
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            self._fault(path.name, f"broken tar after sample {sample.key if sample else '(none)'} ({error})")
        if sample is not None:
            yield sample

    def _check_sample(self, sample: _Sample) -> None:
        """Check the members of a sample and keep what the checks of order and statistics need."""
        if missing := [name for name in shards.MEMBERS if name not in sample.members]:
            self._fault(sample.key, f"lacks {', '.join(missing)}")
        marked = self._check_images(sample)
        if "json" in sample.members:
            try:
                sample.metadata = check_metadata(sample.members["json"])
                self._check_metadata(sample.key, sample.metadata, marked)
            except ValidationError as error:
                for fault in _explain(error):
                    self._fault(sample.key, f"its JSON: {fault}")
        sample.chunk = self._read_floats(sample, "action.npy", (self._manifest.horizon, ACTION_DIMENSIONS))
        sample.state = self._read_floats(sample, "state.npy", None)
        sample.members = {}

    def _check_images(self, sample: _Sample) -> tuple[set[int], int, int] | None:
        """Decode both images; returns the labels that occur, height and width, where they can be used."""
        if not {"jpg", "mask.png"} <= set(sample.members):
            return None
        try:
            image = Image.open(io.BytesIO(sample.members["jpg"]), formats=["JPEG"])
            image.load()
            mask = Image.open(io.BytesIO(sample.members["mask.png"]), formats=["PNG"])
            if mask.mode != "P":
                raise InputError(f"the mask is no indexed image but {mask.mode}")
            labels = set(np.flatnonzero(np.bincount(np.asarray(mask).ravel())).tolist())
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            self._fault(sample.key, f"image or mask does not decode ({error})")
            return None
        if wrong := labels - _LABELS:
            self._fault(sample.key, f"the mask holds label {min(wrong)}, which is none of 0, 1, 2, 255")
            return None
        if mask.size != image.size:
            self._fault(sample.key, "the mask is {}x{}, the image {}x{}".format(*mask.size, *image.size))
            return None
        return labels, mask.height, mask.width

    def _check_metadata(self, key: str, metadata: Metadata, marked: tuple[set[int], int, int] | None) -> None:
        rules = {
            f"its JSON is of {shards.sample_key(metadata.episode_id, metadata.step)}": key
            == shards.sample_key(metadata.episode_id, metadata.step),
            f"its JSON is of the data set {metadata.dataset}": metadata.dataset == self._manifest.dataset
            and metadata.episode_id.startswith(f"{metadata.dataset}-"),
            "its steps are not 0 <= first_step <= step <= last_step < num_steps": metadata.first_step
            <= metadata.step
            <= metadata.last_step
            < metadata.num_steps,
            "close_step is not within the episode": metadata.close_step < metadata.num_steps,
            "prompt_step is neither first_step nor -1": metadata.prompt_step in (-1, metadata.first_step),
            "its status is not among those that the manifest includes": self._manifest.include == "all"
            or metadata.status == ACCEPTED,
            f"status {metadata.status} with reason {metadata.reason!r}": metadata.reason == ""
            if metadata.status == ACCEPTED
            else metadata.reason in REASONS,
            f"unknown evidence_status {metadata.evidence_status!r}": metadata.evidence_status
            in (SUPPORTED, CONTRADICTED, NOT_APPLICABLE),
        }
        for fault, sound in rules.items():
            if not sound:
                self._fault(key, fault)
        if marked is not None:
            self._check_marks(key, metadata, *marked)

    def _check_marks(self, key: str, metadata: Metadata, labels: set[int], height: int, width: int) -> None:
        """The labels agree with what the JSON says is marked, boxes, points and RLE with the image's size."""
        allowed = {masks.BACKGROUND, masks.GRIPPER, masks.TARGET}
        if not metadata.object_mask_valid:
            allowed -= {masks.TARGET}
        if not metadata.gripper_mask_valid:
            allowed -= {masks.GRIPPER}
        if allowed == {masks.BACKGROUND}:
            allowed = {masks.NOT_ANNOTATED}
        if wrong := labels - allowed:
            self._fault(key, f"the mask holds label {min(wrong)}, which its JSON says is not marked here")
        for name in ("object_box", "region_box", "gripper_box"):
            x0, y0, x1, y1 = box = getattr(metadata, name)
            if tuple(box) != masks.NO_BOX and not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                self._fault(key, f"{name} {box} is no box in an image of {width}x{height}")
        for name in ("points", "line"):
            points = getattr(metadata, name)
            if points != shards.NO_POINTS and not all(0 <= x <= width and 0 <= y <= height for x, y in points):
                self._fault(key, f"{name} {points} lie outside the image of {width}x{height}")
        rle = metadata.object_mask
        if rle != shards.NO_RLE:
            try:
                sound = rle["size"] == [height, width] and masks.encode(masks.decode(rle)) == rle
            except (ValueError, OverflowError, MemoryError):
                sound = False
            if not sound:
                self._fault(key, f"object_mask is no RLE of an image of {width}x{height}")

    def _read_floats(self, sample: _Sample, name: str, shape: tuple[int, ...] | None) -> np.ndarray | None:
        if name not in sample.members:
            return None
        try:
            values = np.load(io.BytesIO(sample.members[name]), allow_pickle=False)
        except (ValueError, EOFError, OSError, OverflowError, MemoryError, SyntaxError, TypeError) as error:
            self._fault(sample.key, f"{name} cannot be read ({error})")
            return None
        if not isinstance(values, np.ndarray) or values.dtype != np.float32:
            self._fault(sample.key, f"{name} holds no float32")
        elif values.shape != shape if shape else values.ndim != 1 or not len(values):
            self._fault(sample.key, f"{name} has the shape {values.shape}, not {shape or '(S,)'}")
        elif not np.isfinite(values).all():
            self._fault(sample.key, f"{name} holds a value that is not finite")
        else:
            return values
        return None

    def _check_order(self, previous: _Sample | None, sample: _Sample) -> None:
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
        # Row i of a step is row 0 of the step i later, and behind the last step the robot stands still.
        chunks = previous.chunk, sample.chunk
        if chunks[0] is not None and chunks[1] is not None and not np.array_equal(chunks[0][1:], chunks[1][:-1]):
            self._fault(sample.key, "its action chunk does not continue that of the step before")
        if previous.state is not None and sample.state is not None and previous.state.shape != sample.state.shape:
            self._fault(
                sample.key, f"state.npy has the shape {sample.state.shape}, before it was {previous.state.shape}"
            )

    def _check_end(self, last: _Sample | None) -> None:
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
        indexed = {row["key"]: row for row in self._index.filter(pc.field("shard") == name).to_pylist()}
        for row in rows:
            listed = indexed.pop(row["key"], None)
            if listed is None:
                self._fault(row["key"], "in a shard, not in the index")
            elif different := [column for column, value in row.items() if value not in (None, listed[column])]:
                self._fault(row["key"], f"the index has another {', '.join(different)}")
        for key in sorted(indexed):
            self._fault(key, "in the index, in no shard")

    def _read_statistics(self) -> dict[str, Any] | None:
        path = self._directory / "dataset_statistics.json"
        try:
            return json.loads(path.read_bytes())[self._manifest.dataset] if path.is_file() else None
        except (ValueError, KeyError, TypeError, RecursionError):
            self._fault("dataset_statistics.json", f"holds no statistics of {self._manifest.dataset}")
            return None

    def _check_statistics(self) -> None:
        """Recompute the statistics where the samples are all valid transitions; else check what must hold of them."""
        if len(self._episodes) != self._manifest.episodes:
            self._fault("manifest.json", f"{self._manifest.episodes} episodes, the shards have {len(self._episodes)}")
        if self._statistics is None or not self._transitions:
            return
        try:
            actions, states = (np.concatenate(parts) for parts in zip(*self._transitions, strict=True))
            self._compare_statistics(self._statistics, actions, states)
        except (KeyError, TypeError, ValueError) as error:
            self._fault("dataset_statistics.json", f"is not in the form of the format ({error!r})")

    def _compare_statistics(self, found: dict[str, Any], actions: np.ndarray, states: np.ndarray) -> None:
        subject = "dataset_statistics.json"
        if found["num_transitions"] < len(actions) or found["num_trajectories"] < len(self._episodes):
            self._fault(subject, "counts fewer transitions or trajectories than the shards hold")
        expected = dataset_statistics(actions, states, found["num_trajectories"])
        if found["action"]["mask"] != expected["action"]["mask"]:
            self._fault(subject, f"action.mask is not {expected['action']['mask']}")
        for part, values in (("action", actions), ("proprio", states)):
            table = {
                name: np.array(found[part][name], np.float64) for name in ("min", "q01", "mean", "q99", "max", "std")
            }
            if any(row.shape != values.shape[1:] or not np.isfinite(row).all() for row in table.values()):
                self._fault(subject, f"{part} does not have {values.shape[1]} finite numbers a row")
                continue
            slack = 1e-6 * (1 + np.abs(table["min"]) + np.abs(table["max"]))  # float32 sources, float64 sums
            ordered = [("min", "q01"), ("q01", "q99"), ("q99", "max"), ("min", "mean"), ("mean", "max")]
            if (table["std"] < 0).any() or any((table[low] > table[high] + slack).any() for low, high in ordered):
                self._fault(subject, f"{part} is not ordered min <= q01 <= q99 <= max, min <= mean <= max, 0 <= std")
            if (values.min(0) < table["min"] - slack).any() or (values.max(0) > table["max"] + slack).any():
                self._fault(subject, f"{part}: samples lie outside min and max")
            if found["num_transitions"] == len(values):
                different = [
                    name for name in table if not np.allclose(table[name], expected[part][name], rtol=1e-6, atol=1e-9)
                ]
                if different:
                    self._fault(subject, f"{part}: {', '.join(different)} differ from those of the samples")
