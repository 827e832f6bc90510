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
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from annotate.faults import internal_error
from annotate.sources import layout
from annotate.sources.episode import Episode, RecordId
from annotate.sources.tf_example import Example
from pixel160k.errors import InputError, one_line
from pixel160k.format import table
from pixel160k.format.origins import ORIGINS
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.paths import AnyPath, open_path
from pixel160k.tfrecord import read_records

_FILE_NAME = re.compile(r"(?P<stem>.+)\.tfrecord-(?P<shard>\d{5})-of-(?P<shards>\d{5})$")
_MOST_RECORDS = 100_000  # of a file: an episode id has five digits for them


@dataclass(frozen=True)
class SourceFile:
    """One TFRecord file, the unit of work: number `shard` of the `shards` files of its split.

    `records` is how many records the data set says that the file holds (−1: it does not say), `version` the data set's, `take`
    how many records are read, from the first (−1: all).
    """

    path: AnyPath
    dataset: str
    split: str
    shard: int
    shards: int
    records: int
    version: str = ""
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
        folders: a pattern of folders whose name is that of the data set, whatever its dataset_info.json says.
    """

    name: str
    features: tuple[str, ...]
    to_episode: "Callable[[Columns, RecordId, str], Episode]"
    folders: str = ""

    @property
    def dataset(self) -> str:
        """OpenVLA's key; "" where each data set has a name of its own (`layout.name_of`)."""
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
        if not payload:
            raise InputError("the record is empty")
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


def list_files(
    source: Source, data_dir: str | AnyPath, split: str = "", cameras: Sequence[str] = ()
) -> list[SourceFile]:
    """The TFRecord files of a data set, sorted by name.

    Args:
        source: whose schema the data set must have.
        data_dir: the folder that holds features.json and dataset_info.json, or a folder at most two levels above it that
            leads to only one such.
        split: only files of this split; "" for all.
        cameras: those of `source.cameras` that it must have beside the main one.

    Raises:
        InputError: nothing there, several data sets or files of several, another source's data set, no such split or
            camera, a name that cannot be part of an episode id, or a features.json or dataset_info.json that
            tensorflow_datasets did not write.
    """
    directory = layout.find_dataset(open_path(data_dir))
    columns = layout.read_columns(directory)
    if missing := [feature for feature in source.features if feature not in columns]:
        raise InputError(f"{directory} is not a {source.name} data set: its features.json lacks {', '.join(missing)}")
    for camera in cameras:
        if (column := _column(camera)) not in columns:
            raise InputError(f"{directory} has no camera {camera!r}: its features.json lacks {column}")
    info = layout.read_info(directory)
    lengths = {part.name: part.shard_lengths for part in info.splits}
    dataset = source.dataset or layout.name_of(directory, info, source.folders)
    files: list[SourceFile] = []
    alike: dict[str, tuple[str, int, str]] = {}  # of each split: what begins the names of its files, their number, one
    listing: list[AnyPath] = sorted(directory.absolute().iterdir(), key=str)  # absolute: other processes read it
    for path in listing:
        if not (match := _FILE_NAME.match(path.name)):
            continue
        found = layout.split_of_file(match["stem"], info)
        if split not in ("", found):
            continue
        layout.check_split(found, path)
        shard, shards = int(match["shard"]), int(match["shards"])
        stem, count, other = alike.setdefault(found, (match["stem"], shards, path.name))
        if (stem, count) != (match["stem"], shards):
            raise InputError(
                f"{directory} mixes two copies of split {found!r} ({other}, {path.name}); keep one of them"
            )
        known = lengths.get(found, [])
        records = known[shard] if shard < len(known) == shards else -1
        if records > _MOST_RECORDS:
            raise InputError(
                f"{directory / 'dataset_info.json'} says that {path.name} holds {records} records, more than any; mend it"
            )
        files.append(SourceFile(path, dataset, found, shard, shards, records, info.version))
    if not files:
        wanted = f"TFRecord file of split {split!r}" if split else "TFRecord file"
        raise InputError(
            f"{directory} holds no {wanted} ({info.name or 'NAME'}-{split or 'SPLIT'}.tfrecord-00000-of-...)"
        )
    return files


def read_episodes(
    source: Source, file: SourceFile, camera: str = "", views: Sequence[str] = ()
) -> Iterator[Episode | EpisodeAnnotation]:
    """Yield every record of a file as an Episode, or as a failed row that says what is wrong with it.

    No record is lost: where the file ends early, or what follows in it cannot be read, one row stands for each record that
    the data set says it should hold, and at least one for a file without any.

    Args:
        source: whose schema the records have.
        file: one of `list_files`.
        camera: one of `source.cameras`; "" for the main one.
        views: further cameras whose frames the episodes have too (`Episode.views`).

    Raises:
        InputError: the source has no such camera, or the file holds more records than an episode id can tell apart.
        OSError: the file cannot be read.
    """
    camera = camera or source.cameras[0]
    if camera not in source.cameras:
        raise InputError(f"no camera {camera!r}; this source has {', '.join(source.cameras)}")
    take = None if file.take < 0 else file.take
    seen, broken = 0, ""  # broken: why nothing after the records seen can be read
    for record in islice(read_records(file.path), take):
        if record.number >= _MOST_RECORDS:
            raise InputError(f"{file.path} holds more than {_MOST_RECORDS} records; split it")
        seen = record.number + 1
        identity = file.identify(record.number, record.masked_crc32c)
        broken = ""
        if not record.fault:
            yield _read_record(source, record.payload, identity, camera, views)
        elif record.fault.startswith("the file ends"):
            yield _failed(identity, "truncated_file", record.fault)
        else:
            instead = "" if record.number or record.payload else layout.instead_of_data(file.path)
            broken = instead or f"nothing after record {record.number} can be read: {record.fault}"
            yield _failed(identity, "malformed_record", instead or record.fault)
    if not seen and file.records:
        broken = "the file is empty"
    rows = max(file.records, not seen and file.records < 0)
    for number in range(seen, rows if take is None else min(rows, take)):
        detail = broken or f"the file ends before record {number} of {file.records}"
        yield _failed(file.identify(number, 0), "truncated_file", detail)


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
        records = file.records
        if records < 0:
            records = max(1, sum(1 for _ in read_records(file.path)))  # a file without any makes one failed row
        chosen.append(replace(file, take=min(records, limit)))
        limit -= chosen[-1].take
    return chosen


def _read_record(
    source: Source, payload: bytes, identity: RecordId, camera: str, views: Sequence[str]
) -> Episode | EpisodeAnnotation:
    """A record as an Episode, or a failed row."""
    try:
        columns = Columns(payload)
        episode = source.to_episode(columns, identity, camera)
        if not np.isfinite(episode.actions).all():  # differences of finite numbers may be too large
            raise InputError("an action is not finite")
        if episode.fingers_contradict:
            raise InputError(
                "the fingers are apart where the gripper is told to close, and together where it is told to open: "
                f"its actions are of another convention than those of {source.name}"
            )
    except InputError as error:
        return _failed(identity, "malformed_record", one_line(error))
    except Exception as error:
        return internal_error(EpisodeAnnotation(**asdict(identity)), error)
    return replace(episode, views={name: _view(columns, name) for name in views}) if views else episode


def _view(columns: Columns, camera: str) -> Sequence[bytes] | InputError:
    """The frames of a further camera, or why the record does not hold them: that costs the camera, not the episode."""
    try:
        return columns.strings(_column(camera))
    except InputError as error:
        return error


def _column(camera: str) -> str:
    """The column of a camera's frames, in every source."""
    return f"steps/observation/{camera}"


def _failed(identity: RecordId, reason: str, detail: str) -> EpisodeAnnotation:
    return EpisodeAnnotation(**asdict(identity), status=table.FAILED, reason=reason, detail=detail)
