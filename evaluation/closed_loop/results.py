"""The rows of an evaluation, one an episode, in a Parquet file that is whole after every episode: a killed one goes on."""

import io
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.closed_loop.episode import EpisodeResult
from evaluation.shifts import NONE
from pixel160k.errors import InputError, one_line
from pixel160k.files import written_atomically

FILE_NAME = "episodes.parquet"
TIMED = ("seconds", "policy_seconds", "render_seconds")  # columns that no two runs have alike
_MADE_WITH, _SHIFT = b"pixelvla", "shift"
_TYPES = {int: pa.int64(), str: pa.string(), bool: pa.bool_(), float: pa.float64()}
_SCHEMA = pa.schema([(field.name, _TYPES[field.type]) for field in fields(EpisodeResult)])  # type: ignore[index]


def write(results: Iterable[EpisodeResult], made_with: dict[str, Any], folder: Path) -> None:
    """Write all rows, in the order of their scenes.

    Args:
        results: one an episode.
        made_with: what decides the results: settings, policy, versions; any JSON.
        folder: the evaluation's.
    """
    rows = sorted(results, key=lambda row: (row.task_id, row.target, row.initial_state, row.shift, row.condition))
    columns = [[getattr(row, name) for row in rows] for name in _SCHEMA.names]
    metadata = {_MADE_WITH: json.dumps(made_with, sort_keys=True).encode()}
    with written_atomically(folder / FILE_NAME) as temporary:
        pq.write_table(
            pa.Table.from_arrays([*map(pa.array, columns, _SCHEMA.types)], schema=_SCHEMA.with_metadata(metadata)),
            temporary,
        )


def read(folder: Path) -> tuple[list[EpisodeResult], dict[str, Any]]:
    """The rows of an evaluation, and what it was made with.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    file = folder / FILE_NAME
    try:
        table = pq.read_table(io.BytesIO(file.read_bytes()))  # opened once: a running evaluation replaces it
        made_with: dict[str, Any] = json.loads(table.schema.metadata[_MADE_WITH])
        if _SHIFT not in table.column_names:
            table, made_with = _unshifted(table, made_with)
        rows = table.cast(_SCHEMA).to_pylist()
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {file}: {one_line(error)}; it is written by: pixelcli evaluate libero") from None
    return [EpisodeResult(**row) for row in rows], made_with


def _unshifted(table: pa.Table, made_with: dict[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
    """A table from before there were shifts, as one of today: its scenes are as they are, unless noise was before the camera."""
    settings = dict(made_with["settings"])
    if settings.pop("noise", 0):
        raise ValueError("noise was before its camera, from before that was a shift")
    column = pa.array([NONE] * len(table), pa.string())
    table = table.append_column(_SHIFT, column).select(_SCHEMA.names)
    return table, {**made_with, "settings": {**settings, "shifts": [NONE]}}
