"""The files beside the tars of a shard folder, checked as they are read: manifest, index and statistics.

A folder is a path, or a text that may be a URL; `pixel160k.paths` opens both.
"""

import errno
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from pixel160k.errors import InputError, one_line
from pixel160k.format import episode_rows, shards
from pixel160k.format.schema import Manifest
from pixel160k.paths import AnyPath, open_path


class _Rows(BaseModel):
    mean: list[float]
    std: list[float]
    min: list[float]
    max: list[float]
    q01: list[float]
    q99: list[float]


class _ActionRows(_Rows):
    mask: list[bool]


class _Statistics(BaseModel):
    """The form of one data set's statistics; what else a file holds is left alone."""

    action: _ActionRows
    proprio: _Rows
    num_transitions: int
    num_trajectories: int
    split: str = ""  # the only one that is counted; "": all of the source


def read_manifest(folder: str | AnyPath) -> dict[str, Any]:
    """The manifest of a shard folder, with all keys of `pixel160k.format.schema.Manifest`.

    Raises:
        InputError: there is none, its format version is not this one's, or a key is missing or wrong.
    """
    manifest = read_unchecked_manifest(folder)
    try:
        Manifest.model_validate(manifest)
    except ValidationError as error:
        fault = explain(error)[0]
        raise InputError(f"{folder}/manifest.json: {fault}; `pixelcli verify` says more") from None
    return manifest


def read_unchecked_manifest(folder: str | AnyPath) -> dict[str, Any]:
    """The manifest of a shard folder, of which nothing but the format version is checked.

    Raises:
        InputError: there is none, or its format version is not this one's.
    """
    try:
        manifest = json.loads(_read(folder, "manifest.json"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise InputError(f"{folder} holds no shards (no readable manifest.json); `pixelcli build-shards` makes them")
    if (version := manifest.get("format_version")) not in range(shards.FORMAT_VERSION, shards.WITH_CAMERAS_VERSION + 1):
        raise InputError(
            f"{folder}/manifest.json has format version {version!r}; this software reads 1 to 3: "
            "rebuild the shards, or install the version that wrote them"
        )
    return manifest


def read_index(folder: str | AnyPath, columns: Sequence[str] = tuple(shards.INDEX_SCHEMA.names)) -> pa.Table:
    """Columns of a shard folder's index, one row per sample; `episode_id`, `status` and `shard` are dictionaries.

    Raises:
        InputError: it cannot be read, or a column is missing, of another type, or has gaps.
    """
    where = f"{folder}/index.parquet"
    try:
        content = _read(folder, "index.parquet")
    except OSError as error:
        raise InputError(f"{where} cannot be read ({one_line(error)}); build these shards again") from None
    index = shards.read_index_table(io.BytesIO(content), where, columns)
    _check_columns(index, shards.INDEX_SCHEMA, where)
    return index


def read_episode_rows(folder: str | AnyPath) -> pa.Table:
    """The table of a shard folder's episodes, with the columns of `pixel160k.format.episode_rows.EpisodeRow`.

    Raises:
        InputError: it cannot be read, or a column is missing, of another type, or has gaps.
    """
    where = f"{folder}/{episode_rows.EPISODES}"
    try:
        with pq.ParquetFile(io.BytesIO(_read(folder, episode_rows.EPISODES))) as parquet:
            table = parquet.read(use_threads=False).select(episode_rows.SCHEMA.names)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{where} cannot be read ({one_line(error)}); build these shards again") from None
    _check_columns(table, episode_rows.SCHEMA, where)
    return table.combine_chunks()


def _check_columns(table: pa.Table, schema: pa.Schema, where: str) -> None:
    """Check that columns have the types of a schema, texts maybe as dictionaries, and no gaps. Raises InputError."""
    for column in table.schema:
        found = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if found != schema.field(column.name).type or table[column.name].null_count:
            raise InputError(f"{where} cannot be read (column {column.name}: {found}); build these shards again")


def read_statistics(folder: str | AnyPath, dataset: str) -> dict[str, Any]:
    """A data set's statistics as `pixel160k.format.actions.normalise` takes them, with OpenVLA's names.

    Raises:
        InputError: dataset_statistics.json is missing or does not hold them.
    """
    try:
        content = _read(folder, "dataset_statistics.json")
    except OSError:
        content = b""
    try:
        return parse_statistics(content, dataset)
    except InputError as error:
        raise InputError(f"{folder}/dataset_statistics.json {error}; build these shards again") from None


def parse_statistics(content: bytes, dataset: str) -> dict[str, Any]:
    """A data set's statistics from the bytes of dataset_statistics.json. Numbers may be NaN.

    Raises:
        InputError: they hold none, or not in the form of the format. The message does not name the file.
    """
    try:
        every = json.loads(content)
    except (ValueError, RecursionError):
        every = None
    if not isinstance(every, dict) or dataset not in every:
        raise InputError(f"holds no statistics of {dataset}")
    try:
        _Statistics.model_validate(every[dataset])
    except ValidationError as error:
        raise InputError(f"is not in the form of the format ({explain(error)[0]})") from None
    return every[dataset]


def explain(error: ValidationError) -> list[str]:
    """What pydantic found wrong, one line per fault: `shards.0.name: field required`."""
    return [
        f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
        for fault in error.errors()
    ]


def _read(folder: str | AnyPath, name: str) -> bytes:
    """Read a file of a folder.

    Raises:
        OSError: there is none.
        InputError: there may well be one, which the store or the disk does not give us, or no such URL can be read.
    """
    try:
        return (open_path(folder) / name).read_bytes()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EIO):
            raise InputError(f"cannot read {folder}/{name}: {error.strerror}") from None
        raise
