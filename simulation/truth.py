"""The truth table: what the simulator knows of a recorded episode and no annotator may see.

One Parquet file `truth.parquet` beside the RLDS folder, one row per episode. Masks are those of the recorded image
(agent view, 256 x 256, turned by 180 degrees), visible pixels only, at every recorded step.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.errors import InputError, one_line
from pixel160k.files import written_atomically
from pixel160k.format.arrow import arrow_type
from pixel160k.format.masks import RLE, decode
from simulation.environment import GRIPPER

FILE_NAME = "truth.parquet"
TARGET = "target"

_RLE = arrow_type(RLE)
_STEP = pa.struct(
    [
        ("gripper", _RLE),
        ("target", _RLE),
        ("others", pa.list_(pa.struct([("name", pa.string()), ("mask", _RLE)]))),
    ]
)
SCHEMA = pa.schema(
    [
        ("episode_id", pa.string()),
        ("suite", pa.string()),
        ("task_id", pa.int32()),
        ("initial_state", pa.int32()),
        ("instruction", pa.string()),
        ("target_instance", pa.string()),
        ("target_phrase", pa.string()),
        ("contact_step", pa.int32()),
        ("grasp_step", pa.int32()),
        ("home_step", pa.int32()),
        ("attempts", pa.int32()),
        ("steps", pa.list_(_STEP)),
    ]
)


@dataclass(frozen=True)
class StepTruth:
    """The masks of what is visible at one recorded step."""

    gripper: RLE  # hand and fingers
    target: RLE  # the object to be picked, or the handle or knob to be moved
    others: dict[str, RLE]  # every other visible instance by its name; `robot_arm` is the rest of the robot


@dataclass(frozen=True)
class EpisodeTruth:
    """One row of the table. A step is the index of a recorded step, after thinning."""

    episode_id: str
    suite: str
    task_id: int
    initial_state: int
    instruction: str
    target_instance: str  # the first movable object, handle or knob that the fingers touched, or else should have
    target_phrase: str  # the words of the instruction that name it
    contact_step: int  # the step of that first touch; -1: they touched nothing
    grasp_step: (
        int  # the first step at which the fingers are told to close on what they then move; -1: they move nothing
    )
    home_step: int  # the step at which the way home begins
    attempts: int  # how many attempts it took, the recorded one included
    steps: list[StepTruth]

    def mask(self, step: int, name: str = TARGET) -> np.ndarray:
        """The visible mask of something at a step, bool (height, width); empty where it is not visible.

        `name` is "target", "gripper" or the name of an instance.
        """
        truth = self.steps[step]
        if name in (TARGET, self.target_instance):
            return decode(truth.target)
        if name == GRIPPER:
            return decode(truth.gripper)
        if name in truth.others:
            return decode(truth.others[name])
        height, width = truth.target["size"]
        return np.zeros((height, width), dtype=bool)


def phrase_of(instance_category: str, instruction: str) -> str:
    """The words of an instruction that name an object: the longest run of words that all occur in its category's name.

    `akita_black_bowl` in "pick up the black bowl between the plate and the ramekin" -> "black bowl", `white_yellow_mug` in
    "pick up the yellow and white mug" -> "yellow and white mug". "" if there is none.
    """
    names = set(instance_category.lower().split("_"))
    longest: list[str] = []
    run: list[str] = []
    for word in instruction.lower().split():
        run = [*run, word] if word in names or (word == "and" and run) else []
        if len(run) > len(longest) and word in names:
            longest = run
    return " ".join(longest)


def write(rows: Iterable[EpisodeTruth], path: Path, versions: Mapping[str, str]) -> None:
    """Write the table. Each episode is one row group, so that memory stays flat; equal rows give equal bytes.

    `versions` are those of the simulator that made the recording, by distribution; the table keeps them.
    """
    schema = SCHEMA.with_metadata(dict(versions))
    with written_atomically(path) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        for row in rows:
            writer.write_table(pa.Table.from_pylist([_to_record(row)], schema=schema))


def read_versions(path: Path) -> dict[str, str]:
    """The versions of the simulator that made a recording, by distribution; none for tables that do not say.

    Raises:
        InputError: the file is missing or is no Parquet file.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read the truth table {path}: {one_line(error)}") from None
    return {name.decode(): value.decode() for name, value in metadata.items() if not name.startswith(b"ARROW:")}


def read(path: Path) -> dict[str, EpisodeTruth]:
    """Read the whole table: episode id -> row, in the table's order.

    Raises:
        InputError: the file is missing or is no truth table.
    """
    return {row.episode_id: row for row in iterate(path)}


def iterate(path: Path) -> Iterator[EpisodeTruth]:
    """Yield the rows of the table in its order; only one is in memory at a time.

    Raises:
        InputError: the file is missing or is no truth table.
    """
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise InputError(f"{path} is no truth table: its columns are not those that `pixelcli sample` writes")
            for batch in file.iter_batches(batch_size=1):
                yield from map(_from_record, batch.to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read the truth table {path}: {one_line(error)}") from None


def _to_record(row: EpisodeTruth) -> dict[str, Any]:
    steps = [
        {
            "gripper": step.gripper,
            "target": step.target,
            "others": [{"name": name, "mask": mask} for name, mask in sorted(step.others.items())],
        }
        for step in row.steps
    ]
    return {**vars(row), "steps": steps}


def _from_record(record: dict[str, Any]) -> EpisodeTruth:
    steps = [
        StepTruth(step["gripper"], step["target"], {other["name"]: other["mask"] for other in step["others"]})
        for step in record["steps"]
    ]
    return EpisodeTruth(**{**record, "steps": steps})
