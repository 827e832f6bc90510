"""The verb-pattern grammar, on instructions of the real data sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotate.target_object import target_object, verb_class

CASES = [
    # the paper's own examples
    ("pick vessel and place it on the blue cloth", "vessel", "pick_place"),
    ("move the red fork to the left side of stove", "red fork", "pick_place"),
    # bridge_orig
    ("put cup from counter or drying rack into sink", "cup", "pick_place"),
    ("flip pot upright which is in sink", "pot", "push"),
    ("turn lever vertical to front", "lever", "turn"),
    ("Take the silver pot and move it to the top left burner.", "silver pot", "pick_place"),
    ("unfold the cloth from top right to bottom left", "cloth", "open"),
    # fractal
    ("pick rxbar chocolate from bottom drawer and place on counter", "rxbar chocolate", "pick_place"),
    ("move 7up can near coke can", "7up can", "pick_place"),
    ("place coke can upright", "coke can", "pick_place"),
    ("knock water bottle over", "water bottle", "push"),
    ("open top drawer", "top drawer", "open"),
    ("close middle drawer", "middle drawer", "close"),
    # libero
    ("pick up the black bowl between the plate and the ramekin and place it on the plate", "black bowl", "pick_place"),
    ("turn on the stove", "stove", "turn"),
    ("push the plate to the front of the stove", "plate", "push"),
    ("put both the alphabet soup and the tomato sauce in the basket", "alphabet soup", "pick_place"),
    ("pick up the book and place it in the back compartment of the caddy", "book", "pick_place"),
    # no object is named
    ("put everything in the box", "", "pick_place"),
    ("pick it up", "", "pick_place"),
    ("pick all of the objects", "", "pick_place"),
    ("pick up the object", "", "pick_place"),
    ("pick up the blue object", "blue object", "pick_place"),
    ("move this", "", "pick_place"),
    ("hello robot", "", "other"),
    ("", "", "other"),
]


@pytest.mark.parametrize(("instruction", "target", "kind"), CASES)
def test_grammar(instruction, target, kind):
    assert target_object(instruction) == target
    assert verb_class(instruction) == kind


@given(st.text(max_size=60))
def test_the_answer_is_always_a_run_of_the_instruction(instruction):
    answer = target_object(instruction)
    squeezed = "".join(character for character in instruction.lower() if character.isalnum())
    assert "".join(character for character in answer if character.isalnum()) in squeezed
