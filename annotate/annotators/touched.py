"""What the hand touches where nothing is carried away: a drawer's handle, a stove's knob, a button.

An instruction names the drawer, but the hand takes hold of its handle, and the prompts should say so. For such
instructions the detector is asked for the part by its own name. Where none is found, or the thing has no such part, the
target is the thing itself as far as it lies in the region proposal. Only this file says which verb classes these are.
"""

import re
from collections.abc import Sequence

from annotate.annotators.candidates import Candidate, nearness
from annotate.annotators.motion import Motion
from annotate.annotators.regions import centre_of
from annotate.settings import ChoiceSettings
from pixel160k.format import masks
from pixel160k.format.table import Box

_OPENED, _PUSHED, _TURNED, _WORKED_ON = {"open", "close"}, {"push"}, {"turn"}, {"wipe", "fold"}
FIXED = _OPENED | _TURNED
"""The verb classes of what moves without leaving its place."""

SAME_PART = 0.4
"""Boxes of one kind of part with a greater IoU show one part: the handles of a chest of drawers overlap less."""

# Noun -> what the detector is asked for.
_HANDLES = {"drawer": "drawer handle"} | dict.fromkeys(
    "door cabinet cupboard fridge refrigerator freezer microwave oven dishwasher".split(), "door handle"
)
_CONTROLS = (
    dict.fromkeys("stove burner stovetop cooktop hob".split(), "stove knob")
    | dict.fromkeys("oven radio thermostat".split(), "knob")
    | dict.fromkeys("light lamp".split(), "switch")
    | dict.fromkeys("microwave machine".split(), "button")
    | dict.fromkeys("faucet tap".split(), "faucet handle")
)
_PARTS = {"handle", "knob", "button", "switch", "lever", "dial"}  # who names one means it
_FIRST, _LAST, _BETWEEN = {"top", "upper"}, {"bottom", "lower"}, {"middle", "center", "centre"}


def part_of(verb_class: str, target: str) -> str:
    """The part by which a target is moved without being carried away, as the detector is asked for it; "" for none.

    >>> part_of("open", "middle drawer of the cabinet")
    'drawer handle'
    >>> part_of("pick_place", "drawer")
    ''
    """
    parts = _CONTROLS if verb_class in _TURNED else _HANDLES if verb_class in _OPENED | _PUSHED else {}
    nouns = [word.removesuffix("s") for word in target.split(" of ")[0].split()]
    return next((parts[noun] for noun in reversed(nouns) if noun in parts and nouns[-1] not in _PARTS), "")


def stays_in_place(verb_class: str) -> bool:
    """Whether what is moved is not carried away. Of a target without such a part only what lies in the region is meant then:
    a drawer's front, a cloth's corner.
    """
    return verb_class in FIXED | _WORKED_ON


def ranked_parts(
    candidates: Sequence[Candidate], gripper: Box, motion: Motion | None, target: str, settings: ChoiceSettings
) -> list[Candidate]:
    """The candidates for a part, the best first; equally good ones stay in their order, and those whose mask is empty come last.

    Besides score and nearness, two questions count like a full score each: did the part leave its place (a handle moves
    with its drawer; a knob need not)? Does it lie where the target's words say ("top", "middle", "bottom") among those
    that score at least `min_part_score`?

    Args:
        candidates: of one frame.
        gripper: the gripper's box on the close frame, xyxy in pixels. Nearness is that to its centre: a hand that
            reaches for a handle seldom lies in the arm's direction, so its box does not tell where the fingers end.
        motion: of the episode; None where it says nothing.
        target: the words of the instruction.
        settings: the weight of nearness, how fast it falls, and what counts as found.
    """
    there = [one.mask.any() for one in candidates]
    sure = [
        index for index, one in enumerate(candidates) if there[index] and one.detection.score >= settings.min_part_score
    ]
    heights = {index: centre_of(masks.box_of(candidates[index].mask))[1] for index in sure}
    named = _named_by_position(sorted(sure, key=heights.__getitem__), target)

    def merit(index: int) -> float:
        if not there[index]:
            return -1.0
        one = candidates[index]
        left = motion is not None and motion.left_its_place[one.mask].mean() >= 0.5
        near = nearness(one.mask, centre_of(gripper), settings)
        return one.detection.score + near + left + (index in named)

    return [candidates[index] for index in sorted(range(len(candidates)), key=merit, reverse=True)]


def _named_by_position(stacked: list[int], target: str) -> set[int]:
    """Which of the parts, given from top to bottom, lie where the words say; none where no word does."""
    words = set(re.findall(r"\w+", target))
    if len(stacked) < 2:
        return set()
    for place, said in ((stacked[:1], _FIRST), (stacked[-1:], _LAST), (stacked[1:-1], _BETWEEN)):
        if words & said:
            return set(place)
    return set()
