"""Which of several candidates is the target, where it is looked for, and what becomes of stray pieces and halves."""

import numpy as np
import pytest
from conftest import read_all
from hypothesis import given
from hypothesis import strategies as st
from scene import episode, object_mask, write_scenes

from annotate.annotators.candidates import Candidate, distinct, fingers_end, ranked
from annotate.annotators.grasps import holding_grasp
from annotate.annotators.mask_cleaning import near_box
from annotate.annotators.regions import opened, propose_region, reaches_out
from annotate.annotators.touched import ranked_parts
from annotate.settings import AnnotateSettings
from pixel160k.format import masks
from pixel160k.format.table import Detection

SETTINGS = AnnotateSettings()
CHOICE = SETTINGS.choice
TAKEN, ALIKE = (90, 150), (130, 150)  # centres of a disc that is carried away and of one just like it


def candidate(centre, score, mask=None):
    mask = object_mask(centre) if mask is None else mask
    return Candidate(Detection(masks.box_of(mask), score), mask, 0.9)


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    """Of an episode in which the disc at TAKEN is carried away."""
    (read,) = read_all("libero", write_scenes(tmp_path_factory.mktemp("drawn"), [episode(centre=TAKEN)]))
    return holding_grasp(read, SETTINGS).motion


def test_what_left_its_place_outweighs_the_detector_and_nearness(motion):
    wrong, right = candidate(ALIKE, 0.95), candidate(TAKEN, 0.1)
    assert ranked([wrong, right], ALIKE, motion, CHOICE) == [right, wrong]


def test_a_box_in_which_nothing_is_cut_out_is_never_chosen(motion):
    """SAM 2 calls the thing absent in many a box of a low score; an empty mask agrees with what did not move."""
    found, nothing = candidate(ALIKE, 0.1), Candidate(Detection((0, 0, 9, 9), 0.95), np.zeros((256, 256), bool), 0.0)
    assert ranked([nothing, found], (0, 0), motion, CHOICE)[0] is found
    assert ranked([nothing, found], (0, 0), None, CHOICE)[0] is found
    assert ranked_parts([nothing, found], (0, 0, 9, 9), motion, "top drawer", CHOICE)[0] is found


def test_without_motion_nearness_to_the_fingers_decides_between_alike_things():
    far, near = candidate(ALIKE, 0.7), candidate(TAKEN, 0.5)
    assert ranked([far, near], TAKEN, None, CHOICE) == [near, far]
    assert ranked([far, near], ((TAKEN[0] + ALIKE[0]) / 2, 150), None, CHOICE) == [far, near]  # equally near: the score


def test_a_whole_is_better_than_its_half_and_a_half_is_not_accepted(motion):
    half = object_mask(TAKEN)
    half[: TAKEN[1]] = False
    whole, part = candidate(TAKEN, 0.5), candidate(TAKEN, 0.6, half)
    assert ranked([part, whole], TAKEN, motion, CHOICE) == [whole, part]
    whole_evidence, part_evidence = (motion.evidence(one.mask, 0.3) for one in (whole, part))
    assert whole_evidence.status == part_evidence.status == "supported"
    assert part_evidence.coverage < SETTINGS.filter.min_coverage < 0.75 < whole_evidence.coverage


def test_nothing_that_moved_near_a_mask_leaves_nothing_uncovered(motion):
    evidence = motion.evidence(object_mask((200, 60)), 0.3)
    assert (evidence.status, evidence.coverage) == ("contradicted", 1.0)


@given(
    corner=st.tuples(st.floats(0, 200), st.floats(0, 200)),
    sides=st.tuples(st.floats(4, 56), st.floats(4, 56)),
    entry=st.tuples(st.floats(0, 256), st.floats(0, 256)),
)
def test_the_fingers_end_on_the_far_side_of_the_grippers_box(corner, sides, entry):
    x0, y0, x1, y1 = box = (*corner, corner[0] + sides[0], corner[1] + sides[1])
    x, y = fingers_end(box, entry)
    assert x0 - 1e-6 <= x <= x1 + 1e-6 and y0 - 1e-6 <= y <= y1 + 1e-6
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    assert np.dot(np.array([x, y]) - centre, centre - entry) >= -1e-6
    assert fingers_end(box, None) == pytest.approx(tuple(centre))


def test_a_hand_from_above_ends_at_the_bottom():
    assert fingers_end((100, 80, 160, 110), (130, 0)) == (130, 110)


def test_a_thing_that_is_seen_twice_is_one_candidate():
    twice = [Detection((10, 10, 50, 50), 0.9), Detection((11, 10, 50, 51), 0.8), Detection((60, 10, 90, 50), 0.7)]
    assert distinct(twice, 0.8, 5) == [twice[0], twice[2]]
    assert distinct(twice, 0.8, 1) == twice[:1]
    assert distinct(twice, 1.0, 5) == twice


@given(
    st.tuples(st.floats(0, 200), st.floats(0, 150), st.floats(4, 56), st.floats(4, 40)),
    st.floats(1, 4),
)
def test_a_region_holds_the_gripper_and_is_square_before_it_stays_in_place(box, factor):
    gripper = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    region = propose_region(gripper, factor, 200, 260)
    for side, length in zip(region, (260, 200, 260, 200), strict=True):
        assert 0 <= side <= length
    assert all(side <= inner + 1e-6 for side, inner in zip(region[:2], gripper[:2], strict=True))
    assert all(side >= inner - 1e-6 for side, inner in zip(region[2:], gripper[2:], strict=True))
    side = factor * max(box[2], box[3])
    far = (np.inf, np.inf)
    unclipped = propose_region((1000, 1000, 1000 + box[2], 1000 + box[3]), factor, *far)
    assert unclipped[2] - unclipped[0] == pytest.approx(side) == unclipped[3] - unclipped[1]


def test_a_flat_hands_region_reaches_down_to_what_it_holds():
    assert propose_region((100, 60, 160, 90), 2, 256, 256) == (70, 15, 190, 135)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((20, 20, 40, 40), (20, 20, 40, 40)),
        ((10.5, 20, 40, 40), (0, 20, 40, 40)),
        ((20, 20, 40, 99.2), (20, 20, 40, 200)),
        ((20, 0.5, 100, 40), (20, 0, 100, 40)),  # the image's own edges
    ],
)
def test_a_box_that_a_window_cut_is_open_there(box, expected):
    window = (10, 0, 100, 100)
    assert opened(box, window, 200, 100) == expected
    assert reaches_out(expected, window) is (expected[0] < 10 or expected[3] > 100)


def test_what_lies_off_the_box_goes_and_what_sticks_out_a_little_stays():
    mask = np.zeros((60, 60), bool)
    mask[9:31, 10:20] = True
    stray = mask.copy()
    stray[40:50, 40:55] = True  # a piece of its own
    stray[31:45, 12:15] = True  # and one that hangs on to it
    np.testing.assert_array_equal(near_box(stray, (10, 10, 20, 30)) & stray, near_box(stray, (10, 10, 20, 30)))
    assert not (near_box(stray, (10, 10, 20, 30)) & ~mask)[32:].any()
    np.testing.assert_array_equal(near_box(mask, (10, 10, 20, 30)), mask)
