"""The annotation table: one typed row an episode, rejected ones too, kept as Parquet parts.

`annotate` writes part k from source file k; `build-shards`, `evaluate` and `browse` read the parts. A row holds what
every stage found, so that accepting can be repeated without the models. Boxes are float32 xyxy in pixels of the source
image, half-open, origin top left; points lie at pixel centres (x + 0.5); masks are COCO RLE; scores lie in [0, 1].
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.errors import InputError
from pixel160k.format.masks import RLE

Box = tuple[float, float, float, float]
Point = tuple[float, float]

Status = Literal["accepted", "rejected", "failed"]
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"
FAILED: Final = "failed"
SUPPORTED, CONTRADICTED, NOT_APPLICABLE = "supported", "contradicted", "not_applicable"

REASONS: dict[str, str] = {
    "malformed_record": "the record's checksum or contents are broken",
    "truncated_file": "the source file ends before this record",
    "bad_image": "a frame that the annotation needs is missing, blank or does not decode",
    "too_short": "the episode has no valid step, or only one",
    "no_gripper_close": "the gripper never goes from open to closed",
    "no_instruction": "the instruction is empty",
    "no_target_object": "the instruction names no object to be grasped",
    "gripper_not_found": "no gripper was found on the close frame",
    "not_detected": "no object was found in the region proposal",
    "low_confidence": "the object's box or mask scored below its threshold",
    "mask_too_small": "the object's mask is smaller than the smallest allowed",
    "mask_too_large": "the object's mask is larger than the largest allowed",
    "outside_region": "too little of the object's mask lies in the region proposal",
    "contradicted_by_motion": "what the mask shows did not leave its place when the gripper carried the object away",
}
"""The closed list of reasons for a row that is not accepted, each with its meaning."""


@dataclass(frozen=True)
class Detection:
    """A candidate box of the target object."""

    box: Box
    score: float


@dataclass(frozen=True)
class Evidence:
    """Whether the object's mask agrees with what moved; `step` is the raw step that was compared with the first."""

    status: str = NOT_APPLICABLE
    score: float = 0.0
    step: int = -1

    def judged(self, min_score: float) -> "Evidence":
        """The same evidence, supporting or contradicting by a threshold; what does not apply stays so."""
        if self.status == NOT_APPLICABLE:
            return self
        return dataclasses.replace(self, status=SUPPORTED if self.score >= min_score else CONTRADICTED)


@dataclass(frozen=True)
class Prompts:
    """Visual prompts on the first valid step: points inside the mask, a line inside it, its outer box."""

    points: list[Point]
    line: list[Point]
    region: Box


@dataclass(frozen=True)
class EpisodeAnnotation:
    """One row. `close_step` is −1 where there is none; None stands where a stage found nothing or did not run.

    `first_step`..`last_step` are the valid raw steps: the first is x_0, the frame that object mask and prompts belong to.
    `detail` says more of the reason, for people; `verb` is the instruction's verb class.
    """

    episode_id: str
    dataset: str
    split: str
    shard: int
    record: int
    record_crc32c: int
    native_id: str = ""
    camera: str = ""
    instruction: str = ""
    verb: str = ""
    num_steps: int = 0
    first_step: int = -1
    last_step: int = -1
    image_height: int = 0
    image_width: int = 0
    status: Status = FAILED
    reason: str = ""
    detail: str = ""
    close_step: int = -1
    gripper_box: Box | None = None
    gripper_mask: RLE | None = None
    region_box: Box | None = None
    target_object: str = ""
    detections: list[Detection] = field(default_factory=list)
    object_box: Box | None = None
    detection_score: float = 0.0
    object_mask: RLE | None = None
    mask_score: float = 0.0
    evidence: Evidence = Evidence()
    prompts: Prompts | None = None


_BOX = pa.list_(pa.float32())
_POINT = pa.list_(pa.float32())
RLE_TYPE = pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()})
SCHEMA = pa.schema(
    {
        "episode_id": pa.string(),
        "dataset": pa.string(),
        "split": pa.string(),
        "shard": pa.int32(),
        "record": pa.int32(),
        "record_crc32c": pa.uint32(),
        "native_id": pa.string(),
        "camera": pa.string(),
        "instruction": pa.string(),
        "verb": pa.string(),
        "num_steps": pa.int32(),
        "first_step": pa.int32(),
        "last_step": pa.int32(),
        "image_height": pa.int32(),
        "image_width": pa.int32(),
        "status": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "close_step": pa.int32(),
        "gripper_box": _BOX,
        "gripper_mask": RLE_TYPE,
        "region_box": _BOX,
        "target_object": pa.string(),
        "detections": pa.list_(pa.struct({"box": _BOX, "score": pa.float32()})),
        "object_box": _BOX,
        "detection_score": pa.float32(),
        "object_mask": RLE_TYPE,
        "mask_score": pa.float32(),
        "evidence": pa.struct({"status": pa.string(), "score": pa.float32(), "step": pa.int32()}),
        "prompts": pa.struct({"points": pa.list_(_POINT), "line": pa.list_(_POINT), "region": _BOX}),
    }
)


def tally(rows: list[EpisodeAnnotation]) -> dict[str, Counter[str]]:
    """How many rows have each status and each reason."""
    return {"status": Counter(row.status for row in rows), "reasons": Counter(row.reason for row in rows if row.reason)}


def write_part(path: str | Path, rows: list[EpisodeAnnotation], metadata: dict[str, Any]) -> None:
    """Write one part; the metadata, stored as JSON, may hold only what changes the contents."""
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
    stored = {"pixelvla": json.dumps(metadata, sort_keys=True)}
    pq.write_table(table.replace_schema_metadata(stored), path, compression="zstd")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata with which a part was written."""
    return json.loads(pq.read_schema(path).metadata[b"pixelvla"])


def read_part(path: str | Path) -> list[EpisodeAnnotation]:
    """Read one part back into rows.

    Raises:
        InputError: the file is not a part of an annotation table.
    """
    try:
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is not an annotation part: {' '.join(str(error).split())}") from None
    return [_from_row(row) for row in rows]


def list_parts(directory: str | Path) -> list[Path]:
    """The parts of an annotation directory, in order.

    Raises:
        InputError: the directory is missing or holds no part.
    """
    parts = sorted(Path(directory).glob("part-*.parquet"))
    if not parts:
        raise InputError(f"{directory} holds no annotations (part-*.parquet); make some with `pixelcli annotate`")
    return parts


def read_annotations(directory: str | Path) -> Iterator[EpisodeAnnotation]:
    """Yield every row of an annotation directory, part by part."""
    for part in list_parts(directory):
        yield from read_part(part)


def _from_row(row: dict[str, Any]) -> EpisodeAnnotation:
    def box(values: list[float] | None) -> Box | None:
        return None if values is None else (values[0], values[1], values[2], values[3])

    row["detections"] = [Detection(tuple(found["box"]), found["score"]) for found in row["detections"]]
    row["evidence"] = Evidence(**row["evidence"])
    for name in ("gripper_box", "region_box", "object_box"):
        row[name] = box(row[name])
    if row["prompts"] is not None:
        prompts = row["prompts"]
        points, line = ([(x, y) for x, y in prompts[name]] for name in ("points", "line"))
        row["prompts"] = Prompts(points, line, tuple(prompts["region"]))
    return EpisodeAnnotation(**row)
