"""The last step: each reason on the row that deserves it, in the order of the stages."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotate.accept import accept
from annotate.settings import FilterSettings
from pixel160k.format import masks, table
from pixel160k.format.table import EpisodeAnnotation, Evidence


def square(size, at=(20, 20)):
    mask = np.zeros((100, 100), bool)
    mask[at[0] : at[0] + size, at[1] : at[1] + size] = True
    return masks.encode(mask)


GOOD = EpisodeAnnotation(
    "d-train-00000-00000", "d", "train", 0, 0, 1, instruction="pick up the cup", verb="pick_place", num_steps=9,
    first_step=0, last_step=8, image_height=100, image_width=100, close_step=3, close_steps=[3, 6], gripper_box=(10, 10, 40, 40),
    gripper_mask=square(4), region_box=(10, 10, 60, 60), target_object="cup", detection_score=0.9,
    object_mask=square(10), mask_score=0.9, evidence=Evidence("supported", 0.9, 8),
)  # fmt: skip


def test_a_good_row_is_accepted():
    row = accept(GOOD, FilterSettings())
    assert (row.status, row.reason) == ("accepted", "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"last_step": 0}, "too_short"),
        ({"last_step": -1}, "too_short"),
        ({"close_step": -1, "close_steps": []}, "no_gripper_close"),
        ({"close_step": -1}, "failed_grasp"),
        ({"instruction": "", "target_object": ""}, "no_instruction"),
        ({"target_object": ""}, "no_target_object"),
        ({"gripper_mask": None, "region_box": None, "object_mask": None}, "gripper_not_found"),
        ({"region_box": None, "object_mask": None}, "camera_moved"),
        ({"region_box": (0, 0, 80, 80)}, "region_too_large"),
        ({"object_mask": None}, "not_detected"),
        ({"detection_score": 0.05}, "low_confidence"),
        ({"detection_score": 0.15}, ""),  # motion supports the mask
        ({"detection_score": 0.15, "evidence": Evidence()}, "low_confidence"),
        ({"mask_score": 0.1}, "low_confidence"),
        ({"object_mask": square(2)}, "mask_too_small"),
        ({"object_mask": square(50)}, "mask_too_large"),
        ({"object_mask": square(10, at=(80, 80))}, "outside_region"),
        ({"evidence": Evidence("contradicted", 0.1, 8)}, "contradicted_by_motion"),
        ({"evidence": Evidence("contradicted", 0.1, 8, 0.2)}, "contradicted_by_motion"),
        ({"evidence": Evidence("supported", 0.9, 8, 0.4)}, "mask_incomplete"),
        ({"evidence": Evidence("not_applicable", 0.0, -1)}, ""),  # only a contradiction rejects
        ({"close_step": -1, "object_mask": None}, "failed_grasp"),  # the earliest stage's reason wins
    ],
)
def test_reasons(change, reason):
    assert accept(dataclasses.replace(GOOD, **change), FilterSettings()).reason == reason


def test_accepting_can_be_repeated_with_other_thresholds():
    strict = accept(GOOD, FilterSettings(min_evidence=0.95))
    assert (strict.status, strict.reason) == ("rejected", "contradicted_by_motion")
    assert accept(strict, FilterSettings()) == accept(GOOD, FilterSettings())


def test_parts_of_earlier_versions_are_read(tmp_path):
    table.write_part(tmp_path / "part.parquet", [GOOD], {})
    columns = pq.read_table(tmp_path / "part.parquet")
    evidence = [
        {name: found[name] for name in ("status", "score", "step")} for found in columns["evidence"].to_pylist()
    ]
    place = columns.schema.get_field_index("evidence")
    older = columns.set_column(place, "evidence", pa.array(evidence)).drop_columns(["close_steps", "target_part"])
    pq.write_table(older, tmp_path / "older.parquet")
    (row,) = table.read_part(tmp_path / "older.parquet")
    assert row == dataclasses.replace(table.read_part(tmp_path / "part.parquet")[0], close_steps=[])
    assert accept(row, FilterSettings()).status == "accepted"


def test_failed_rows_stay_failed():
    failed = dataclasses.replace(GOOD, status="failed", reason="bad_image")
    assert accept(failed, FilterSettings()) == failed
