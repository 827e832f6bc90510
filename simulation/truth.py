"""The truth table: what the simulator knows of a recorded episode and no annotator may see.

One Parquet file `truth.parquet` beside the RLDS folder, one row an episode. Masks are those of the recorded image
(agent view, 256 x 256, turned by 180 degrees), visible pixels only, at every recorded step.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.format.arrow import arrow_type
from pixel160k.format.masks import RLE, decode

FILE_NAME = "truth.parquet"
GRIPPER, TARGET = "gripper", "target"

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
    """The visible masks of one recorded step. `others` holds every other instance by name, empty masks left out."""

    gripper: RLE  # hand and fingers
    target: RLE
    others: dict[str, RLE]  # `robot_arm` is the rest of the robot


@dataclass(frozen=True)
class EpisodeTruth:
    """One row of the table. Steps are recorded (thinned) raw step indices."""

    episode_id: str
    suite: str
    task_id: int
    initial_state: int
    instruction: str
    target_instance: str  # the first movable object that the fingers touched
    target_phrase: str  # the words of the instruction that name it
    contact_step: int  # the step of that first touch
    grasp_step: int  # the first step whose gripper command is close
    home_step: int  # the step at which the way home begins
    attempts: int  # how many attempts it took, the recorded one included
    steps: list[StepTruth]

    def mask(self, step: int, name: str = TARGET) -> np.ndarray:
        """A mask at a step, bool (height, width): of `target`, `gripper` or an instance by its name."""
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
    """The longest run of consecutive instruction words that all occur in a category name, "" if there is none.

    `akita_black_bowl` in "pick up the black bowl between the plate and the ramekin" -> "black bowl".
    """
    names = set(instance_category.lower().split("_"))
    longest: list[str] = []
    run: list[str] = []
    for word in instruction.lower().split():
        run = [*run, word] if word in names else []
        if len(run) > len(longest):
            longest = run
    return " ".join(longest)


def write(rows: Iterable[EpisodeTruth], path: Path) -> None:
    """Write the table, a row group an episode, so that memory stays flat; equal rows give equal bytes."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with pq.ParquetWriter(unfinished, SCHEMA, compression="zstd") as writer:
        for row in rows:
            writer.write_table(pa.Table.from_pylist([_to_record(row)], schema=SCHEMA))
    os.replace(unfinished, path)


def read(path: Path) -> dict[str, EpisodeTruth]:
    """Read the whole table, by episode id."""
    return {row.episode_id: row for row in iterate(path)}


def iterate(path: Path) -> Iterator[EpisodeTruth]:
    """Read the table row by row, in its order."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1):
            yield from map(_from_record, batch.to_pylist())


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
