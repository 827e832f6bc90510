"""The weightless annotators, on drawn scenes whose masks are known exactly, and on the shipped sample."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
from conftest import read_all
from hypothesis import given
from hypothesis import strategies as st
from scene import CLOSE, MISS_CLOSE, MISS_STEPS, episode, object_mask, write_scenes

from annotate.accept import accept
from annotate.annotator import annotate_episodes
from annotate.annotators.choose import choose_annotators
from annotate.annotators.grasps import holding_grasp
from annotate.annotators.motion import _percentile
from annotate.annotators.roles import FoundObject, Gripper
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
    motion = holding_grasp(read, SETTINGS).motion
    right, wrong = motion.evidence(object_mask((90, 150)), 0.3), motion.evidence(object_mask((60, 220)), 0.3)
    assert (right.status, wrong.status) == ("supported", "contradicted")
    assert right.score > 0.9 > 0.1 > wrong.score


@pytest.mark.parametrize("fingers", [True, False])
@pytest.mark.parametrize("misses", [[(40, 140)], [(90, 120)], [(150, 150), (60, 200)]])
def test_the_grasp_that_holds_is_found_after_others_that_failed(tmp_path, fingers, misses):
    """With measured fingers, and without them by what left its place."""
    _, row = annotate_drawn(tmp_path, fingers=fingers, misses=misses)
    closes = [MISS_CLOSE + MISS_STEPS * number for number in range(len(misses))] + [MISS_STEPS * len(misses) + CLOSE]
    assert (row.status, row.close_steps, row.close_step) == ("accepted", closes, closes[-1])
    assert masks.iou(masks.decode(row.object_mask), object_mask((90, 150))) > 0.9


@pytest.mark.parametrize("fingers", [True, False])
@pytest.mark.parametrize("misses", [[], [(40, 140)]])
def test_a_grasp_that_carries_nothing_has_failed(tmp_path, fingers, misses):
    _, row = annotate_drawn(tmp_path, carry=False, fingers=fingers, misses=misses)
    assert (row.status, row.reason, row.close_step, len(row.close_steps)) == (
        "rejected", "failed_grasp", -1, len(misses) + 1,
    )  # fmt: skip


def test_what_is_not_carried_away_needs_no_lift(tmp_path):
    _, row = annotate_drawn(tmp_path, carry=False, instruction="open the red disc")
    assert row.close_step == CLOSE and row.reason != "failed_grasp"


def test_a_shaken_camera_is_registered(tmp_path):
    _, row = annotate_drawn(tmp_path, shake=3)
    assert masks.iou(masks.decode(row.object_mask), object_mask((90, 150))) > 0.85


@pytest.mark.parametrize("instruction", ["push the red disc to the plate", "shift the red disc"])
def test_evidence_does_not_depend_on_the_verb(tmp_path, instruction):
    read, row = annotate_drawn(tmp_path, instruction=instruction)
    assert row.evidence.status == "not_applicable" if row.object_mask is None else "supported"
    assert holding_grasp(read, SETTINGS).motion.evidence(object_mask((90, 150)), 0.3).status == "supported"


def test_evidence_says_why_it_does_not_apply(tmp_path):
    read, _ = annotate_drawn(tmp_path, carry=False, instruction="open the red disc", fingers=True)
    found = holding_grasp(read, SETTINGS).motion.evidence(object_mask((90, 150)), 0.3)
    assert (found.status, found.why) == ("not_applicable", "nothing was carried away: the fingers held nothing")


def test_the_region_follows_a_shaken_camera(tmp_path):
    still, shaken = (annotate_drawn(tmp_path / str(shake), shake=shake)[1] for shake in (0, 9))
    moved = holding_grasp(*read_all("libero", tmp_path / "9"), SETTINGS).motion.close_offset
    assert np.hypot(*moved) > 3
    np.testing.assert_allclose(shaken.region_box, still.region_box, atol=3)


@pytest.mark.parametrize("instruction", ["open the drawer", "turn on the stove", "close the red disc"])
def test_what_is_not_carried_away_is_not_found_by_motion(tmp_path, instruction):
    _, row = annotate_drawn(tmp_path, instruction=instruction)
    assert (row.reason, row.evidence.status) == ("not_detected", "not_applicable")
    assert row.detail.startswith("nothing is carried away")


def test_a_driving_base_moves_the_camera(write_fractal):
    from conftest import fractal_episode

    (read,) = read_all("fractal", write_fractal([fractal_episode([0, 0, 1, 0, 0, 0], base=0.2)]))
    row = annotate_episode(read, SETTINGS)
    assert (row.object_mask, row.reason, row.detail) == (None, "camera_moved", "the robot's base drives")


def test_a_camera_that_moves_away_is_noticed(write_fractal):
    from conftest import fractal_episode  # every frame of it is another picture

    (read,) = read_all("fractal", write_fractal([fractal_episode([0, 0, 1, 0, 0, 0])]))
    row = annotate_episode(read, SETTINGS)
    assert (row.reason, row.detail) == ("camera_moved", "the camera moved before the close")


class GrippersByEpisode:
    """Finds in each episode a gripper whose box tells which one it is, and keeps what is asked about objects."""

    def find_grippers(self, groups):
        boxes = [(10.0 * number, 60.0, 40.0 + 10 * number, 90.0) for number in range(len(groups[0]))]
        self.found = [Gripper(box, masks.inside_box(box, 256, 256)) for box in boxes]
        return [self.found]

    def find_objects(self, episodes, grippers, regions, targets):
        self.asked = list(zip(episodes, grippers, regions, targets, strict=True))
        return [FoundObject() for _ in episodes]


def test_a_moved_camera_costs_its_own_episode_alone(tmp_path):
    """The other episode of its group keeps the gripper that was found on it."""
    moved = episode()
    for step in moved["steps"][1:]:  # another picture from the second frame on
        image = cv2.imdecode(np.frombuffer(step["observation"]["image"].getvalue(), np.uint8), cv2.IMREAD_COLOR)
        step["observation"]["image"] = io.BytesIO(cv2.imencode(".jpg", 255 - image // 2)[1].tobytes())
    reads = read_all("libero", write_scenes(tmp_path, [moved, episode()]))
    fake = GrippersByEpisode()
    annotators = dataclasses.replace(choose_annotators(SETTINGS, "cpu"), gripper=fake, object=fake, group_size=2)
    rows, _ = annotate_episodes(reads, annotators, SETTINGS)
    assert [row.reason for row in rows] == ["camera_moved", "not_detected"]
    ((keyframed, gripper, region, _),) = fake.asked
    assert keyframed.episode is reads[1] and gripper is fake.found[1] and region == rows[1].region_box


def test_a_region_beyond_the_first_frame_is_none(tmp_path):
    """The camera turned by 80 pixels to the left: where the hand closes, at the left edge, the first frame shows nothing."""
    turned = episode()
    for step in turned["steps"][1:]:
        image = cv2.imdecode(np.frombuffer(step["observation"]["image"].getvalue(), np.uint8), cv2.IMREAD_COLOR)
        image = np.roll(image, 80, axis=1)
        step["observation"]["image"] = io.BytesIO(cv2.imencode(".jpg", image)[1].tobytes())
    reads, fake = read_all("libero", write_scenes(tmp_path, [turned])), GrippersByEpisode()
    annotators = dataclasses.replace(choose_annotators(SETTINGS, "cpu"), gripper=fake, object=fake)
    (row,), _ = annotate_episodes(reads, annotators, SETTINGS)
    assert (row.reason, row.region_box, fake.asked) == ("camera_moved", None, [])


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
        motion = holding_grasp(read, SETTINGS).motion
        others = known[row.episode_id].steps[row.first_step].others
        for name, rle in others.items():
            mask = masks.decode(rle)
            if name == "robot_arm" or mask.mean() < SETTINGS.filter.min_mask_area:
                continue
            evidence = motion.evidence(mask, SETTINGS.filter.min_evidence)
            everywhere = SETTINGS.filter.model_copy(update={"max_region_area": 1.0})
            swapped = dataclasses.replace(row, object_mask=rle, evidence=evidence, region_box=(0, 0, 256, 256))
            wrong += 1
            rejected += accept(swapped, everywhere).reason == "contradicted_by_motion"
    assert wrong > 50
    assert rejected / wrong > 0.95
