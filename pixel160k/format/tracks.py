"""The tracks: object and gripper masks at every step (p_t), kept as Parquet parts beside the annotation table.

One row a raw step of an episode that has a mask to start from. Null stands where a mask was not tracked; a mask that was
tracked but is not visible is there, and empty.
"""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.errors import InputError, one_line
from pixel160k.format.masks import RLE
from pixel160k.format.table import RLE_TYPE


@dataclass(frozen=True)
class StepMasks:
    """The masks of one raw step; None where that one was not tracked."""

    episode_id: str
    step: int
    object_mask: RLE | None
    object_visible: bool
    gripper_mask: RLE | None
    gripper_visible: bool


SCHEMA = pa.schema(
    {
        "episode_id": pa.string(),
        "step": pa.int32(),
        "object_mask": RLE_TYPE,
        "object_visible": pa.bool_(),
        "gripper_mask": RLE_TYPE,
        "gripper_visible": pa.bool_(),
    }
)


def write_tracks(path: Path, rows: list[StepMasks]) -> None:
    """Write one part."""
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
    pq.write_table(table, path, compression="zstd")


def read_tracks(path: Path) -> dict[str, dict[int, StepMasks]]:
    """Read one part: episode id -> raw step -> masks; empty where there is no such file.

    Raises:
        InputError: the file is not a part of the tracks.
    """
    tracks: dict[str, dict[int, StepMasks]] = defaultdict(dict)
    if path.is_file():
        try:
            rows = pq.read_table(path, schema=SCHEMA).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} is not a part of the tracks: {one_line(error)}") from None
        for row in rows:
            tracks[row["episode_id"]][row["step"]] = StepMasks(**row)
    return tracks
