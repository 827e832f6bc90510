"""The annotation table: one typed row per episode, rejected ones too, kept as Parquet parts.

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
from typing import Annotated, Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.errors import InputError, one_line
from pixel160k.format.arrow import arrow_schema
from pixel160k.format.masks import RLE
from pixel160k.paths import AnyPath, open_parquet, open_path

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
    "bad_image": "a frame is missing, blank, does not decode, has another size, or is not the same picture to every reader",
    "internal_error": "the software met a bug at this episode, or the machine had no room for it; `detail` says where",
    "too_short": "the episode has no valid step, or only one",
    "no_gripper_close": "the gripper never goes from open to closed",
    "failed_grasp": "the gripper closes, and carries nothing",
    "no_instruction": "the instruction is empty",
    "no_target_object": "the instruction names no object to be grasped",
    "gripper_not_found": "no gripper was found on the close frame",
    "camera_moved": "the camera moved before the gripper closed, so the region proposal cannot be found on the first frame",
    "region_too_large": "the region proposal is larger than the largest allowed",
    "not_detected": "no object was found in the region proposal",
    "low_confidence": "the object's box or mask scored below its threshold",
    "mask_too_small": "the object's mask is smaller than the smallest allowed",
    "mask_too_large": "the object's mask is larger than the largest allowed",
    "outside_region": "too little of the object's mask lies in the region proposal",
    "contradicted_by_motion": "what the mask shows did not leave its place when the gripper carried the object away",
    "mask_incomplete": "the mask covers too little of what left its place there",
}
"""The closed list of reasons for a row that is not accepted, each with its meaning."""


@dataclass(frozen=True)
class Detection:
    """A candidate box of the target object."""

    box: Box
    score: float


@dataclass(frozen=True)
class Evidence:
    """Whether the object's mask agrees with what moved; `step` is the raw step that was compared with the first.

    `score` is the share of the mask that left its place, `coverage` the share that the mask has of what left its place there.
    Where it is not applicable, `why` says what in the images or states is the reason.
    """

    status: str = NOT_APPLICABLE
    score: float = 0.0
    step: int = -1
    coverage: float = 1.0
    why: str = ""

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
    """One row. The text of each field says what it means; None stands where a stage found nothing or did not run."""

    episode_id: Annotated[str, "which record of the source the episode is"]
    dataset: Annotated[str, "the data set's name"]
    split: Annotated[str, "the source's split"]
    shard: Annotated[int, "number of the source file in its split"]
    record: Annotated[int, "number of the record in that file"]
    record_crc32c: Annotated[int, pa.uint32(), "masked CRC32C of the TFRecord frame, checked at every join"]
    native_id: Annotated[str, "the source's own name of the episode"] = ""
    camera: Annotated[str, "which of the source's cameras took the images"] = ""
    instruction: Annotated[str, "what the robot is told"] = ""
    verb: Annotated[
        str, "the instruction's verb class: pick_place, open, close, push, turn, tilt, wipe, fold, or other"
    ] = ""
    num_steps: Annotated[int, "number of raw steps"] = 0
    first_step: Annotated[int, "the first valid raw step (x_0), on whose frame object mask and prompts lie"] = -1
    last_step: Annotated[int, "the last valid raw step"] = -1
    image_height: Annotated[int, "height of the frames in pixels"] = 0
    image_width: Annotated[int, "width of the frames in pixels"] = 0
    status: Annotated[Status, "`accepted`, `rejected` (by a stage), `failed` (the record is unusable)"] = FAILED
    reason: Annotated[str, 'why it is not accepted, of a closed list; `""` where it is'] = ""
    detail: Annotated[str, "more about the reason, for people"] = ""
    close_step: Annotated[
        int, "the raw step at which the gripper closes on what it carries; −1: it carries nothing"
    ] = -1
    close_steps: Annotated[list[int], "all raw steps at which the gripper closes"] = field(default_factory=list)
    gripper_box: Annotated[Box | None, "the gripper on the close frame"] = None
    gripper_mask: Annotated[RLE | None, "the gripper on the close frame"] = None
    region_box: Annotated[Box | None, "the region proposal on x_0, where the object is looked for"] = None
    target_object: Annotated[str, "the words of the object that is to be grasped"] = ""
    target_part: Annotated[
        str, "the part of it that the hand takes hold of, where nothing is carried away; empty: all of it is the target"
    ] = ""
    detections: Annotated[
        list[Detection], "candidate boxes of the object with the detector's scores, the chosen one first"
    ] = field(default_factory=list)
    object_box: Annotated[Box | None, "the object on x_0"] = None
    detection_score: Annotated[float, "score of the object's box, 0 to 1"] = 0.0
    object_mask: Annotated[RLE | None, "the object on x_0"] = None
    mask_score: Annotated[float, "score of the object's mask, 0 to 1"] = 0.0
    evidence: Annotated[
        Evidence, "what motion says of the object's mask, the step that shows it, or why it says nothing"
    ] = Evidence()
    prompts: Annotated[Prompts | None, "visual prompts on the object, on x_0"] = None


SCHEMA = arrow_schema(EpisodeAnnotation)


def tally(rows: list[EpisodeAnnotation]) -> dict[str, Counter[str]]:
    """How many rows have each status and each reason."""
    return {"status": Counter(row.status for row in rows), "reasons": Counter(row.reason for row in rows if row.reason)}


def write_part(path: Path, rows: list[EpisodeAnnotation], metadata: dict[str, Any]) -> None:
    """Write one part; the metadata, stored as JSON, may hold only what changes the contents."""
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
    stored = {"pixelvla": json.dumps(metadata, sort_keys=True)}
    pq.write_table(table.replace_schema_metadata(stored), path, compression="zstd")


def read_part(path: AnyPath) -> list[EpisodeAnnotation]:
    """Read one part back into rows.

    Raises:
        InputError: the file is not a part of an annotation table.
    """
    try:
        rows = pq.read_table(open_parquet(path), schema=SCHEMA).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is not an annotation part: {one_line(error)}") from None
    return [_from_row(row) for row in rows]


def list_parts(directory: str | AnyPath) -> list[AnyPath]:
    """The parts of an annotation directory, in order.

    Raises:
        InputError: the directory is missing or holds no part.
    """
    parts: list[AnyPath] = sorted(open_path(directory).glob("part-*.parquet"), key=str)
    if not parts:
        raise InputError(f"{directory} holds no annotations (part-*.parquet); make some with `pixelcli annotate`")
    return parts


def read_annotations(directory: str | AnyPath) -> Iterator[EpisodeAnnotation]:
    """Yield every row of an annotation directory, part by part."""
    for part in list_parts(directory):
        yield from read_part(part)


def _from_row(row: dict[str, Any]) -> EpisodeAnnotation:
    def box(values: list[float] | None) -> Box | None:
        return None if values is None else (values[0], values[1], values[2], values[3])

    row["detections"] = [Detection(tuple(found["box"]), found["score"]) for found in row["detections"]]
    # Parts written before these columns were there lack them.
    row["close_steps"], row["target_part"] = row["close_steps"] or [], row["target_part"] or ""
    row["evidence"] = Evidence(**{name: value for name, value in row["evidence"].items() if value is not None})
    for name in ("gripper_box", "region_box", "object_box"):
        row[name] = box(row[name])
    if row["prompts"] is not None:
        prompts = row["prompts"]
        points, line = ([(x, y) for x, y in prompts[name]] for name in ("points", "line"))
        row["prompts"] = Prompts(points, line, tuple(prompts["region"]))
    return EpisodeAnnotation(**row)
