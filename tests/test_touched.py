"""Where nothing is carried away: which part is looked for, which of several alike parts it is, and what else is the target."""

from types import SimpleNamespace

import numpy as np
import pytest
from scene import object_mask

pytest.importorskip("torch", reason="needs the extra [foundation]")

from annotate.annotators.candidates import Candidate
from annotate.annotators.foundation import DetectedObjectFinder
from annotate.annotators.regions import crop_window, shift_box
from annotate.annotators.roles import Gripper
from annotate.annotators.segmenter import Segment
from annotate.annotators.touched import part_of, ranked_parts
from annotate.settings import ChoiceSettings
from pixel160k.format import masks
from pixel160k.format.table import Detection

CHOICE = ChoiceSettings()
TOP, MIDDLE, BOTTOM = (90, 60), (90, 100), (90, 140)
HANDLE, DRAWER = (60.0, 60.0, 90.0, 80.0), (20.0, 40.0, 200.0, 120.0)
REGION = (40.0, 40.0, 140.0, 140.0)


def candidate(centre, score=0.5):
    mask = object_mask(centre)
    return Candidate(Detection(masks.box_of(mask), score), mask, 0.9)


def around(x, y):
    return (x - 20, y - 20, x + 20, y + 20)


@pytest.mark.parametrize(
    ("verb_class", "target", "part"),
    [
        ("open", "middle drawer of the cabinet", "drawer handle"),
        ("close", "cabinet drawers", "drawer handle"),
        ("push", "top drawer", "drawer handle"),
        ("close", "microwave door", "door handle"),
        ("turn", "stove", "stove knob"),
        ("turn", "oven", "knob"),
        ("open", "oven", "door handle"),
        ("open", "drawer handle", ""),
        ("turn", "button", ""),
        ("push", "plate", ""),
        ("wipe", "table", ""),
        ("pick_place", "drawer", ""),
        ("other", "stove", ""),
        ("open", "", ""),
    ],
)
def test_the_part_that_is_looked_for(verb_class, target, part):
    assert part_of(verb_class, target) == part


@pytest.mark.parametrize(("word", "place"), [("top", TOP), ("middle", MIDDLE), ("bottom", BOTTOM)])
def test_the_words_tell_alike_parts_apart(word, place):
    parts = [candidate(BOTTOM), candidate(TOP), candidate(MIDDLE), candidate((90, 20), 0.1)]  # the last is no handle
    best = ranked_parts(parts, around(90, 110), None, f"{word} drawer", CHOICE)[0]
    assert masks.box_of(best.mask) == masks.box_of(object_mask(place))


def test_without_such_words_the_part_nearest_to_the_gripper_is_chosen():
    parts = [candidate(TOP, 0.6), candidate(MIDDLE), candidate(BOTTOM)]
    for place in (MIDDLE, BOTTOM):
        best = ranked_parts(parts, around(*place), None, "drawer", CHOICE)[0]
        assert masks.box_of(best.mask) == masks.box_of(object_mask(place))


def test_a_handle_that_stayed_is_not_that_of_the_drawer_that_moved():
    parts = [candidate(TOP, 0.9), candidate(MIDDLE)]
    motion = SimpleNamespace(left_its_place=object_mask(MIDDLE))
    assert ranked_parts(parts, around(90, 80), motion, "drawer", CHOICE)[0] is parts[1]


class Words:
    """Stands for the detector: a box and a score for each phrase that it knows."""

    def __init__(self, known):
        self.known, self.asked = known, []

    def readable(self, phrase):
        return phrase

    def detect(self, images, phrases):
        self.asked += phrases
        x0, y0 = crop_window(REGION, CHOICE.context, 200, 260)[:2]
        return [
            [
                Detection(shift_box(box, -x0, -y0), score)
                for box, score in ([self.known[phrase]] if phrase in self.known else [])
            ]
            for phrase in phrases
        ]


class Filler:
    """Stands for SAM 2: the mask is the box."""

    def segment_each(self, images, boxes):
        return [
            [Segment(masks.inside_box(box, *image.shape[:2]), 0.9) for box in several]
            for image, several in zip(images, boxes, strict=True)
        ]


def find(instruction, target, known):
    detector = Words(known)
    keyframed = SimpleNamespace(
        keyframes=SimpleNamespace(initial=np.zeros((200, 260, 3), np.uint8)),
        episode=SimpleNamespace(base_moves=True, instruction=instruction),
    )
    gripper = Gripper((60, 60, 120, 120), np.zeros((200, 260), bool))
    finder = DetectedObjectFinder(detector, Filler(), 3, CHOICE)
    (found,) = finder.find_objects([keyframed], [gripper], [REGION], [target])
    return found, detector.asked


def test_the_handle_is_the_target_where_one_is_found():
    known = {"drawer handle": (HANDLE, 0.6), "drawer": (DRAWER, 0.9)}
    found, asked = find("open the drawer", "drawer", known)
    assert (found.part, asked) == ("drawer handle", ["drawer handle"])
    assert masks.box_of(found.mask) == HANDLE


@pytest.mark.parametrize("handle", [{}, {"drawer handle": (HANDLE, 0.1)}])
def test_without_a_handle_the_target_is_what_lies_in_the_region(handle):
    found, asked = find("open the drawer", "drawer", handle | {"drawer": (DRAWER, 0.9)})
    assert (found.part, asked) == ("", ["drawer handle", "drawer"])
    assert masks.box_of(found.mask) == (40.0, 40.0, 140.0, 120.0) and "no drawer handle was found" in found.detail


def test_what_is_carried_or_pushed_is_a_target_as_a_whole():
    for instruction in ("pick up the drawer", "push the tray"):
        noun = instruction.split()[-1]
        found, _ = find(instruction, noun, {noun: (DRAWER, 0.9)})
        assert found.part == "" and masks.box_of(found.mask) == DRAWER
