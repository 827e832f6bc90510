"""RLDS data sets on disk: their files, their records as named columns, their episodes one by one.

Reads what `tensorflow_datasets` writes (TFRecord files beside features.json and dataset_info.json) without TensorFlow. No
image is decoded here. A record is a tf.Example whose nested steps are stored as flat columns: `steps/observation/image`
holds one value per step.

What a record holds comes from outside, so `Columns` checks it: missing columns, wrong kinds and lengths, numbers that are
not finite. Each such fault is an InputError, and `read_episodes` turns it into a failed row, `malformed_record`. Any other
exception is a bug, of this module or of a source's `to_episode`; it too costs one row, `internal_error`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from pydantic import BaseModel, Field, ValidationError

from annotate.faults import internal_error
from annotate.sources.episode import Episode, RecordId
from annotate.sources.tf_example import Example
from pixel160k.errors import InputError, one_line
from pixel160k.files import read_json
from pixel160k.format import table
from pixel160k.format.origins import ORIGINS
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.paths import AnyPath, open_path
from pixel160k.tfrecord import read_records

_FILE_NAME = re.compile(r"(?P<name>.+)-(?P<split>[A-Za-z0-9_]+)\.tfrecord-(?P<shard>\d{5})-of-(?P<shards>\d{5})$")


@dataclass(frozen=True)
class SourceFile:
    """One TFRecord file, the unit of work: number `shard` of the `shards` files of its split.

    `records` is how many records the data set says that the file holds (−1: it does not say), `take` how many of them are
    read, from the first (−1: all).
    """

    path: AnyPath
    dataset: str
    split: str
    shard: int
    shards: int
    records: int
    take: int = -1

    @property
    def name(self) -> str:
        """`{split}-{shard}`: names everything made from this file."""
        return f"{self.split}-{self.shard:05d}"

    def identify(self, number: int, masked_crc32c: int) -> RecordId:
        """The project-wide identity of the file's record of this number, counted from 0."""
        episode_id = f"{self.dataset}-{self.name}-{number:05d}"
        return RecordId(episode_id, self.dataset, self.split, self.shard, number, masked_crc32c)


@dataclass(frozen=True)
class Source:
    """What a module of `annotate.sources` offers.

    Attributes:
        name: as `--src` takes it, and the name of its entry in `pixel160k.format.origins`.
        features: the columns without which a data set is not of this source.
        to_episode: turns one record into an Episode of the given camera; InputError where it breaks the schema.
    """

    name: str
    features: tuple[str, ...]
    to_episode: "Callable[[Columns, RecordId, str], Episode]"

    @property
    def dataset(self) -> str:
        """OpenVLA's key; "" where the directory's own name is used."""
        return ORIGINS[self.name].dataset

    @property
    def cameras(self) -> tuple[str, ...]:
        """The names of the cameras, the main one first."""
        return ORIGINS[self.name].cameras


class Columns:
    """The columns of one record, each checked when it is read.

    Every way in which a record can break its schema raises an InputError that names the column: it is missing, of another
    kind, of another length than the number of steps asks for, or holds a number that is not finite.
    """

    def __init__(self, payload: bytes) -> None:
        """Parse a serialized tf.Example.

        Raises:
            InputError: the payload is no tf.Example or has no steps.
        """
        try:
            self._features = Example.FromString(payload).features.feature
        except DecodeError:
            raise InputError("the record is no tf.Example") from None
        self.num_steps = len(self._values("steps/is_first", "int64_list"))
        if not self.num_steps:
            raise InputError("the episode holds no steps")

    def _values(self, name: str, kind: str) -> Any:
        """The values of a column of this kind: float_list, int64_list or bytes_list."""
        if name not in self._features:
            raise InputError(f"the record lacks the feature {name}")
        column = self._features[name]
        if (stored := column.WhichOneof("kind")) not in (kind, None):  # None: an empty column
            raise InputError(f"{name} is stored as {stored}, not as {kind}")
        return getattr(column, kind).value

    def floats(self, name: str, width: int) -> np.ndarray:
        """A numeric step column as float32 (steps, width)."""
        values = np.array(self._values(name, "float_list"), np.float32)
        if values.size != self.num_steps * width:
            raise InputError(f"{name} holds {values.size} numbers, not {self.num_steps} x {width}")
        values = values.reshape(self.num_steps, width)
        if not np.isfinite(values).all():
            raise InputError(f"{name} holds a value that is not finite")
        return values

    def strings(self, name: str) -> Sequence[bytes]:
        """A bytes step column, one value per step, as stored. A value is copied out of the record when it is asked for."""
        values = self._values(name, "bytes_list")
        if len(values) != self.num_steps:
            raise InputError(f"{name} holds {len(values)} values for {self.num_steps} steps")
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


def list_files(source: Source, data_dir: str | AnyPath, split: str = "") -> list[SourceFile]:
    """The TFRecord files of a data set, sorted by name.

    Args:
        source: whose schema the data set must have.
        data_dir: the folder that holds features.json and dataset_info.json, or a folder at most two levels above it that
            leads to only one such.
        split: only files of this split; "" for all.

    Raises:
        InputError: nothing there, several data sets, another source's data set, no such split, or a features.json or
            dataset_info.json that tensorflow_datasets did not write.
    """
    directory = _find_dataset(open_path(data_dir))
    columns = set(_column_names(_read_description(directory / "features.json", _Feature)))
    if missing := [feature for feature in source.features if feature not in columns]:
        raise InputError(f"{directory} is not a {source.name} data set: its features.json lacks {', '.join(missing)}")
    info = _read_description(directory / "dataset_info.json", _DatasetInfo)
    lengths = {part.name: part.shard_lengths for part in info.splits}
    dataset = source.dataset or directory.resolve().parent.name
    if not re.fullmatch(r"[A-Za-z0-9_]+", dataset):
        raise InputError(f"the data set's name {dataset!r} may hold only letters, digits and _; rename its folder")
    files = []
    listing: list[AnyPath] = sorted(directory.absolute().iterdir(), key=str)  # absolute: other processes read it
    for path in listing:
        if (match := _FILE_NAME.match(path.name)) and split in ("", match["split"]):
            shard, shards = int(match["shard"]), int(match["shards"])
            known = lengths.get(match["split"], [])
            records = known[shard] if shard < len(known) == shards else -1
            files.append(SourceFile(path, dataset, match["split"], shard, shards, records))
    if not files:
        wanted = f"TFRecord file of split {split!r}" if split else "TFRecord file"
        raise InputError(f"{directory} holds no {wanted} ({info.name}-{split or 'SPLIT'}.tfrecord-00000-of-...)")
    return files


def read_episodes(source: Source, file: SourceFile, camera: str = "") -> Iterator[Episode | EpisodeAnnotation]:
    """Yield every record of a file as an Episode, or as a failed row that says what is wrong with it.

    No record is lost: where the file ends early, one row stands for each record that the data set says it should hold.

    Args:
        source: whose schema the records have.
        file: one of `list_files`.
        camera: one of `source.cameras`; "" for the main one.

    Raises:
        InputError: the source has no such camera.
        OSError: the file cannot be read.
    """
    camera = camera or source.cameras[0]
    if camera not in source.cameras:
        raise InputError(f"no camera {camera!r}; this source has {', '.join(source.cameras)}")
    seen, take = 0, None if file.take < 0 else file.take
    for record in islice(read_records(file.path), take):
        seen = record.number + 1
        identity = file.identify(record.number, record.masked_crc32c)
        if record.fault:
            cut = record.fault.startswith("the file ends")
            yield _failed(identity, "truncated_file" if cut else "malformed_record", record.fault)
            continue
        yield _read_record(source, record.payload, identity, camera)
    for number in range(seen, file.records if take is None else min(file.records, take)):
        yield _failed(
            file.identify(number, 0), "truncated_file", f"the file ends before record {number} of {file.records}"
        )


def first_episodes(files: Sequence[SourceFile], limit: int) -> list[SourceFile]:
    """The files that hold the first `limit` episodes of a data set, in the order of the files, and of each no more than that.

    A file of which the data set does not say how many records it holds is read through to count them.

    Args:
        files: as `list_files` returns them.
        limit: 1 or more.

    Raises:
        OSError: such a file cannot be read.
    """
    chosen: list[SourceFile] = []
    for file in files:
        if limit == 0:
            break
        records = file.records if file.records >= 0 else sum(1 for _ in read_records(file.path))
        chosen.append(replace(file, take=min(records, limit)))
        limit -= chosen[-1].take
    return chosen


def _read_record(source: Source, payload: bytes, identity: RecordId, camera: str) -> Episode | EpisodeAnnotation:
    """A record as an Episode, or a failed row."""
    try:
        episode = source.to_episode(Columns(payload), identity, camera)
        if not np.isfinite(episode.actions).all():  # differences of finite numbers may be too large
            raise InputError("an action is not finite")
    except InputError as error:
        return _failed(identity, "malformed_record", one_line(error))
    except Exception as error:
        return internal_error(EpisodeAnnotation(**asdict(identity)), error)
    return episode


def _failed(identity: RecordId, reason: str, detail: str) -> EpisodeAnnotation:
    return EpisodeAnnotation(**asdict(identity), status=table.FAILED, reason=reason, detail=detail)


def _find_dataset(data_dir: AnyPath) -> AnyPath:
    if not data_dir.is_dir():
        raise InputError(f"{data_dir} is not a directory; --data-dir names the folder with the TFRecord files")
    for depth in ("", "*/", "*/*/"):
        found = sorted((path.parent for path in data_dir.glob(f"{depth}dataset_info.json")), key=str)
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{data_dir} holds {len(found)} data sets; name one: {', '.join(map(str, found[:4]))}")
    raise InputError(f"{data_dir} holds no RLDS data set (no dataset_info.json there or two folders below)")


class _Split(BaseModel):
    """A split in dataset_info.json; `shard_lengths` is how many records each of its files holds, [] where it does not say."""

    name: str
    shard_lengths: list[int] = Field([], alias="shardLengths")


class _DatasetInfo(BaseModel):
    """What is read of dataset_info.json."""

    name: str = "NAME"
    splits: list[_Split] = []


class _Sequence(BaseModel):
    """A feature of features.json that is repeated."""

    feature: "_Feature"


class _FeaturesDict(BaseModel):
    """Features of features.json by name."""

    features: "dict[str, _Feature]" = {}


class _Feature(BaseModel):
    """What is read of a node of the features.json tree: its children; a leaf has none."""

    features_dict: _FeaturesDict | None = Field(None, alias="featuresDict")
    sequence: _Sequence | None = None


Description = TypeVar("Description", bound=BaseModel)


def _read_description(path: AnyPath, form: type[Description]) -> Description:
    """Read a JSON file of tensorflow_datasets; an InputError names the file and its first fault."""
    try:
        return form.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise InputError(f"{path} is not as tensorflow_datasets writes it: {where}: {fault['msg']}") from None


def _column_names(feature: _Feature, prefix: str = "") -> Iterator[str]:
    """The flat column names of a features.json tree, as tensorflow_datasets lays them out in a tf.Example."""
    if feature.features_dict is not None:
        for name, child in feature.features_dict.features.items():
            yield from _column_names(child, f"{prefix}/{name}" if prefix else name)
    elif feature.sequence is not None:
        yield from _column_names(feature.sequence.feature, prefix)
    else:
        yield prefix
