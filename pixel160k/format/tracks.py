"""The tracks: object and gripper masks at every step (p_t), kept as Parquet parts beside the annotation table.

One row per raw step of an episode that has a mask to start from. Null stands where a mask was not tracked; a mask that was
tracked but is not visible is there, and empty.
"""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.errors import InputError, one_line
from pixel160k.format.arrow import arrow_schema
from pixel160k.format.masks import RLE
from pixel160k.paths import AnyPath, open_parquet


@dataclass(frozen=True)
class StepMasks:
    """The masks of one raw step; None where that one was not tracked."""

    episode_id: Annotated[str, "the episode"]
    step: Annotated[int, "the raw step"]
    object_mask: Annotated[RLE | None, "the object; null: not tracked, empty: not visible"]
    object_visible: Annotated[bool, "whether the object was tracked and is visible"]
    gripper_mask: Annotated[RLE | None, "the gripper; null: not tracked, empty: not visible"]
    gripper_visible: Annotated[bool, "whether the gripper was tracked and is visible"]


SCHEMA = arrow_schema(StepMasks)


def write_tracks(path: Path, rows: list[StepMasks]) -> None:
    """Write one part."""
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
    pq.write_table(table, path, compression="zstd")


def read_tracks(path: AnyPath) -> dict[str, dict[int, StepMasks]]:
    """Read one part: episode id -> raw step -> masks; empty where there is no such file.

    Raises:
        InputError: the file is not a part of the tracks.
    """
    tracks: dict[str, dict[int, StepMasks]] = defaultdict(dict)
    if path.is_file():
        for row in _read(path, schema=SCHEMA).to_pylist():
            tracks[row["episode_id"]][row["step"]] = StepMasks(**row)
    return tracks


def tracked_episodes(path: AnyPath) -> set[str]:
    """The ids of the episodes of which a part holds tracks; none where there is no such file.

    Raises:
        InputError: the file is not a part of the tracks.
    """
    if not path.is_file():
        return set()
    return set(_read(path, columns=["episode_id"])["episode_id"].to_pylist())


def _read(path: AnyPath, **what: Any) -> pa.Table:
    try:
        return pq.read_table(open_parquet(path), **what)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is not a part of the tracks: {one_line(error)}") from None
