"""The weightless annotators, on drawn scenes whose masks are known exactly, and on the shipped sample."""

import dataclasses

import numpy as np
import pytest
from conftest import read_all
from hypothesis import given
from hypothesis import strategies as st
from scene import CLOSE, episode, object_mask, write_scenes

from annotate.accept import accept
from annotate.annotator import annotate_episodes
from annotate.annotators.choose import choose_annotators
from annotate.annotators.motion import Motion, _percentile, decode_keyframes
from annotate.settings import AnnotateSettings
from annotate.sources import sample
from pixel160k.format import masks
from simulation import truth

SETTINGS = AnnotateSettings(annotators="motion")


def annotate_episode(read, settings):
    (row,), _ = annotate_episodes([read], choose_annotators(settings, "cpu"), settings)
    return row


def annotate_drawn(tmp_path, **scene):
    (read,) = read_all("libero", write_scenes(tmp_path, [episode(**scene)]))
    return read, annotate_episode(read, SETTINGS)


@pytest.mark.parametrize("centre", [(90, 150), (150, 200), (60, 120)])
def test_the_object_is_cut_out(tmp_path, centre):
    _, row = annotate_drawn(tmp_path, centre=centre)
    assert (row.status, row.close_step, row.target_object) == ("accepted", CLOSE, "red disc")
    assert masks.iou(masks.decode(row.object_mask), object_mask(centre)) > 0.9
    region = masks.inside_box(row.region_box, 256, 256)
    assert (region & object_mask(centre)).sum() == object_mask(centre).sum()
    assert region.mean() < 0.15
    assert (row.evidence.status, row.evidence.step) == ("supported", 23)
    x0, y0, x1, y1 = row.gripper_box
    assert x0 < centre[0] < x1 and y0 < centre[1] - 10 < y1


def test_a_mask_of_something_else_is_contradicted(tmp_path):
    read, _ = annotate_drawn(tmp_path)
    motion = Motion(decode_keyframes(read, SETTINGS), SETTINGS.motion)
    right, wrong = motion.evidence(object_mask((90, 150)), 0.3), motion.evidence(object_mask((60, 220)), 0.3)
    assert (right.status, wrong.status) == ("supported", "contradicted")
    assert right.score > 0.9 > 0.1 > wrong.score


def test_an_object_left_standing_is_not_accepted(tmp_path):
    _, row = annotate_drawn(tmp_path, carry=False)
    assert (row.status, row.reason) in [("rejected", "not_detected"), ("rejected", "mask_too_small")]


def test_a_shaken_camera_is_registered(tmp_path):
    _, row = annotate_drawn(tmp_path, shake=3)
    assert masks.iou(masks.decode(row.object_mask), object_mask((90, 150))) > 0.85


def test_where_nothing_is_carried_away_evidence_does_not_apply(tmp_path):
    _, row = annotate_drawn(tmp_path, instruction="push the red disc to the plate")
    assert row.evidence.status == "not_applicable"


@pytest.mark.parametrize("instruction", ["open the drawer", "turn on the stove", "close the red disc"])
def test_what_is_not_carried_away_is_not_found_by_motion(tmp_path, instruction):
    _, row = annotate_drawn(tmp_path, instruction=instruction)
    assert (row.reason, row.evidence.status) == ("not_detected", "not_applicable")
    assert row.detail.startswith("nothing is carried away")


def test_a_driving_base_moves_the_camera(write_fractal):
    from conftest import fractal_episode

    (read,) = read_all("fractal", write_fractal([fractal_episode([0, 0, 1, 0, 0, 0], base=0.2)]))
    row = annotate_episode(read, SETTINGS)
    assert (row.object_mask, row.evidence.status, row.detail) == (None, "not_applicable", "the robot's base drives")


def test_a_camera_that_moves_away_is_noticed(write_fractal):
    from conftest import fractal_episode  # every frame of it is another picture

    (read,) = read_all("fractal", write_fractal([fractal_episode([0, 0, 1, 0, 0, 0])]))
    row = annotate_episode(read, SETTINGS)
    assert (row.reason, row.detail) == ("not_detected", "the camera moved")


@given(st.integers(1, 8), st.sampled_from([0, 20, 50, 70, 100]), st.integers(0, 99))
def test_percentile_is_numpys(count, percent, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, 9, 11)).astype(np.uint8)
    np.testing.assert_allclose(_percentile(list(images), percent), np.percentile(images, percent, axis=0), atol=1e-3)


def test_sample_against_its_truth():
    """The floor on the shipped sample; docs/results.md has the held-out figures."""
    known = truth.read(sample.default_directory() / truth.FILE_NAME)
    rows = [annotate_episode(read, SETTINGS) for read in read_all("sample", sample.default_directory())]
    assert {row.episode_id for row in rows} == set(known)
    ious = [
        masks.iou(masks.decode(row.object_mask), known[row.episode_id].mask(row.first_step)) if row.object_mask else 0.0
        for row in rows
    ]
    assert np.mean(ious) > 0.85
    assert [row.close_step for row in rows] == [known[row.episode_id].grasp_step for row in rows]


def test_other_objects_masks_are_rejected_on_the_sample():
    """The filter against wrong masks: each other object's truth mask instead of the one that was found."""
    known = truth.read(sample.default_directory() / truth.FILE_NAME)
    wrong = rejected = 0
    for read in read_all("sample", sample.default_directory()):
        row = annotate_episode(read, SETTINGS)
        motion = Motion(decode_keyframes(read, SETTINGS), SETTINGS.motion)
        others = known[row.episode_id].steps[row.first_step].others
        for name, rle in others.items():
            mask = masks.decode(rle)
            if name == "robot_arm" or mask.mean() < SETTINGS.filter.min_mask_area:
                continue
            evidence = motion.evidence(mask, SETTINGS.filter.min_evidence)
            swapped = dataclasses.replace(row, object_mask=rle, evidence=evidence, region_box=(0, 0, 256, 256))
            wrong += 1
            rejected += accept(swapped, SETTINGS.filter).reason == "contradicted_by_motion"
    assert wrong > 50
    assert rejected / wrong > 0.95
