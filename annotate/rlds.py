"""RLDS data sets on disk: their files, their records as named columns, their episodes one by one.

Works on what `tensorflow_datasets` writes (TFRecord files beside features.json and dataset_info.json) without
TensorFlow, and decodes nothing that is not asked for. A record is a tf.Example whose nested steps are stored as flat
columns: `steps/observation/image` holds one value a step.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from annotate.episode import Episode, RecordId
from annotate.tf_example import Example
from pixel160k import table
from pixel160k.table import EpisodeAnnotation
from pixel160k.tfrecord import read_records

_FILE_NAME = re.compile(r"(?P<name>.+)-(?P<split>[A-Za-z0-9_]+)\.tfrecord-(?P<shard>\d{5})-of-(?P<shards>\d{5})$")


@dataclass(frozen=True)
class SourceFile:
    """One TFRecord file, the unit of work. `records` is how many the data set says it holds (−1: not said)."""

    path: Path
    dataset: str
    split: str
    shard: int
    shards: int
    records: int

    @property
    def name(self) -> str:
        """`{split}-{shard}`: names everything made from this file."""
        return f"{self.split}-{self.shard:05d}"

    def identify(self, number: int, masked_crc32c: int) -> RecordId:
        """The project-wide identity of one of the file's records."""
        episode_id = f"{self.dataset}-{self.name}-{number:05d}"
        return RecordId(episode_id, self.dataset, self.split, self.shard, number, masked_crc32c)


@dataclass(frozen=True)
class Source:
    """What a module of `annotate.sources` offers.

    Attributes:
        name: as `--src` takes it.
        dataset: OpenVLA's key; "" where the directory's own name is used.
        cameras: the main camera first.
        features: the columns without which a data set is not of this source.
        to_episode: turns one record into an Episode of the given camera; ValueError where it breaks the schema.
    """

    name: str
    dataset: str
    cameras: tuple[str, ...]
    features: tuple[str, ...]
    to_episode: "Callable[[Columns, RecordId, str], Episode]"


class Columns:
    """The columns of one record. Lengths are checked against the number of steps; errors name the column."""

    def __init__(self, payload: bytes) -> None:
        """Parse a serialized tf.Example.

        Raises:
            ValueError: the payload is no tf.Example or has no steps.
        """
        try:
            self._features = Example.FromString(payload).features.feature
        except DecodeError:
            raise ValueError("the record is no tf.Example") from None
        self.num_steps = len(self._values("steps/is_first", "int64_list"))
        if not self.num_steps:
            raise ValueError("the episode holds no steps")

    def _values(self, name: str, kind: str) -> Any:
        if name not in self._features:
            raise ValueError(f"the record lacks the feature {name}")
        return getattr(self._features[name], kind).value

    def floats(self, name: str, width: int) -> np.ndarray:
        """A numeric step column as float32 (steps, width)."""
        values = np.array(self._values(name, "float_list"), np.float32)
        if values.size != self.num_steps * width:
            raise ValueError(f"{name} holds {values.size} numbers, not {self.num_steps} x {width}")
        values = values.reshape(self.num_steps, width)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds a value that is not finite")
        return values

    def strings(self, name: str) -> Sequence[bytes]:
        """A bytes step column, one value a step, as stored; a value is copied out of the record when it is asked for."""
        values = self._values(name, "bytes_list")
        if len(values) != self.num_steps:
            raise ValueError(f"{name} holds {len(values)} values for {self.num_steps} steps")
        return values

    def text(self, name: str) -> str:
        """A text step column that says the same at every step: its first value that is not empty."""
        return next(filter(None, (value.decode("utf-8", "replace").strip() for value in self.strings(name))), "")

    def episode_text(self, name: str) -> str:
        """A text of the whole episode; "" where the record has none."""
        values = self._values(name, "bytes_list") if name in self._features else ()
        return values[0].decode("utf-8", "replace") if values else ""

    def episode_integer(self, name: str) -> int:
        """An integer of the whole episode; −1 where the record has none."""
        values = self._values(name, "int64_list") if name in self._features else ()
        return int(values[0]) if values else -1


def list_files(source: Source, data_dir: str | Path, split: str = "") -> list[SourceFile]:
    """The TFRecord files of a data set, sorted, of one split or of all.

    `data_dir` is the folder that holds features.json and dataset_info.json, or one above it that leads to only one such.

    Raises:
        ValueError: nothing there, several data sets, another source's data set, or no such split.
    """
    directory = _find_dataset(Path(data_dir))
    columns = set(_column_names(_read_json(directory / "features.json")))
    if missing := [feature for feature in source.features if feature not in columns]:
        raise ValueError(f"{directory} is not a {source.name} data set: its features.json lacks {', '.join(missing)}")
    info = _read_json(directory / "dataset_info.json")
    lengths = {part["name"]: [int(length) for length in part.get("shardLengths", [])] for part in info["splits"]}
    dataset = source.dataset or directory.resolve().parent.name
    if not re.fullmatch(r"[A-Za-z0-9_]+", dataset):
        raise ValueError(f"the data set's name {dataset!r} may hold only letters, digits and _; rename its folder")
    files = []
    for path in sorted(directory.iterdir()):
        if (match := _FILE_NAME.match(path.name)) and split in ("", match["split"]):
            shard, shards = int(match["shard"]), int(match["shards"])
            known = lengths.get(match["split"], [])
            records = known[shard] if len(known) == shards else -1
            files.append(SourceFile(path, dataset, match["split"], shard, shards, records))
    if not files:
        wanted = f"TFRecord file of split {split!r}" if split else "TFRecord file"
        raise ValueError(f"{directory} holds no {wanted} ({info['name']}-{split or 'SPLIT'}.tfrecord-00000-of-...)")
    return files


def read_episodes(source: Source, file: SourceFile, camera: str = "") -> Iterator[Episode | EpisodeAnnotation]:
    """Yield every record of a file as an Episode, or as a failed row that says what is wrong with it.

    No record is lost: where the file ends early, one row stands for each record that the data set says it should hold.

    Raises:
        ValueError: the source has no such camera.
    """
    camera = camera or source.cameras[0]
    if camera not in source.cameras:
        raise ValueError(f"no camera {camera!r}; this source has {', '.join(source.cameras)}")
    seen = 0
    for record in read_records(file.path):
        seen = record.number + 1
        identity = file.identify(record.number, record.masked_crc32c)
        if record.fault:
            cut = record.fault.startswith("the file ends")
            yield _failed(identity, "truncated_file" if cut else "malformed_record", record.fault)
            continue
        try:
            yield source.to_episode(Columns(record.payload), identity, camera)
        except ValueError as error:
            yield _failed(identity, "malformed_record", str(error))
    for number in range(seen, file.records):
        yield _failed(
            file.identify(number, 0), "truncated_file", f"the file ends before record {number} of {file.records}"
        )


def _failed(identity: RecordId, reason: str, detail: str) -> EpisodeAnnotation:
    return EpisodeAnnotation(**asdict(identity), status=table.FAILED, reason=reason, detail=detail)


def _find_dataset(data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise ValueError(f"{data_dir} is not a directory; --data-dir names the folder with the TFRecord files")
    for depth in ("", "*/", "*/*/"):
        found = sorted(path.parent for path in data_dir.glob(f"{depth}dataset_info.json"))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{data_dir} holds {len(found)} data sets; name one: {', '.join(map(str, found[:4]))}")
    raise ValueError(f"{data_dir} holds no RLDS data set (no dataset_info.json there or two folders below)")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _column_names(feature: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The flat column names of a features.json tree, as tensorflow_datasets lays them out in a tf.Example."""
    if "featuresDict" in feature:
        for name, child in feature["featuresDict"]["features"].items():
            yield from _column_names(child, f"{prefix}/{name}" if prefix else name)
    elif "sequence" in feature:
        yield from _column_names(feature["sequence"]["feature"], prefix)
    else:
        yield prefix
