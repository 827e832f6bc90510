"""Shards of four drawn episodes, small enough to know every byte of: one accepted, three rejected."""

import io
import json

import numpy as np
from PIL import Image

from pixel160k.format import masks, shards
from pixel160k.format.prompts import sample_prompts
from pixel160k.format.table import EpisodeAnnotation, Evidence

SIZE = 32


def disc(x, y, radius):
    ys, xs = np.mgrid[:SIZE, :SIZE]
    return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2


def jpeg(seed):
    image = np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG")
    return buffer.getvalue()


def annotation(record, **changed):
    row = {
        "episode_id": f"drawn-train-00000-{record:05d}",
        "dataset": "drawn",
        "split": "train",
        "shard": 0,
        "record": record,
        "record_crc32c": 0,
        "instruction": "pick up the red cup",
        "num_steps": 4,
        "first_step": 0,
        "last_step": 3,
        "image_height": SIZE,
        "image_width": SIZE,
    }
    return EpisodeAnnotation(**row | changed)


TARGET, GRIPPER = disc(12, 20, 5), disc(20, 8, 4)
ACCEPTED = annotation(
    0,
    instruction="pick up the  Red_Cup <script>alert('x')</script> & go",
    target_object="red cup",
    status="accepted",
    close_step=2,
    gripper_box=masks.box_of(GRIPPER),
    gripper_mask=masks.encode(GRIPPER),
    region_box=(2.0, 3.0, 28.0, 30.0),
    object_mask=masks.encode(TARGET),
    detection_score=0.5,
    mask_score=0.25,
    evidence=Evidence("supported", 0.75, 3),
    prompts=sample_prompts(TARGET, 3, np.random.default_rng(0)),
)
NEVER_CLOSES = annotation(1, status="rejected", reason="no_gripper_close")
CLOSES_TOO_LATE = annotation(
    2,
    instruction="lift the blue lid",
    target_object="blue lid",
    status="rejected",
    reason="gripper_not_found",
    close_step=3,
    last_step=2,
)
NEVER_CLOSES_EITHER = annotation(3, status="rejected", reason="no_gripper_close", instruction="")


def write_drawn_shards(out):
    """Write a shard directory of the four episodes above; the JPEG of a step is `jpeg(10 * record + step)`."""
    rows = [ACCEPTED, NEVER_CLOSES, CLOSES_TOO_LATE, NEVER_CLOSES_EITHER]
    out.mkdir()
    with shards.ShardWriter(out / "drawn-train-00000.tar") as writer:
        for row in rows:
            for step in range(row.first_step, row.last_step + 1):
                masked = shards.step_masks(row, step)
                writer.write(row, masked, jpeg(10 * row.record + step), np.zeros((50, 7)), np.zeros(8))
    shards.write_index(out / "index.parquet", writer.index)
    manifest = {
        "format_version": shards.FORMAT_VERSION,
        "dataset": "drawn",
        "include": "all",
        "horizon": 50,
        "samples": len(writer.index),
        "episodes": len(rows),
        "shards": [],
        "left_out": {"drawn-train-00000-00004": "bad_image"},
        "annotated": {"status": {"accepted": 1, "failed": 1, "rejected": 3}, "reasons": {}},
        "annotations": {"models": {"object": "drawn by hand"}, "settings": {"annotators": "<none>"}},
        "software": "0",
        "files": {},
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out
