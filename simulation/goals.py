"""What a task wants, read from the goal in LIBERO's description of it, as a list of subtasks in the order of doing them.

A goal is a list of predicates that shall hold at the end: `["in", "butter_1", "basket_1_contain_region"]` or `["open",
"wooden_cabinet_1_top_region"]`. Each is one subtask: an object is carried somewhere, or a part of a fixture is moved.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_PARTS = {
    r"_(top|middle|bottom)_region$": r"\1_drawer_handle",
    r"^flat_stove_\d+$": "stove_knob",
}


@dataclass(frozen=True)
class Subtask:
    """One thing to do.

    Attributes:
        predicate: LIBERO's, which holds once it is done.
        thing: what the hand takes hold of: an object, or the handle or knob of a fixture.
        place: the instance, or the region, to put an object on or in; "" where a part of a fixture is moved.
    """

    predicate: tuple[str, ...]
    thing: str
    place: str = ""


def subtasks_of(goal: Sequence[Sequence[str]], objects: Collection[str]) -> tuple[Subtask, ...]:
    """The subtasks of a goal, in its own order, but that what something is put into is closed last.

    Args:
        goal: predicates, each a name and its one or two arguments.
        objects: the names of the scene's movable objects. The region within one of them stands for all of it.
    """
    subtasks = [_subtask(tuple(predicate), objects) for predicate in goal]
    places = [subtask.place for subtask in subtasks]

    def closes_a_place(subtask: Subtask) -> bool:
        name, thing = subtask.predicate[:2]
        return name == "close" and any(place.startswith(thing) for place in places)

    return tuple(sorted(subtasks, key=closes_a_place))


def target_of(subtasks: Sequence[Subtask]) -> Subtask:
    """The subtask whose thing is the task's target: the first object that is carried, else the first part that is moved."""
    return next((subtask for subtask in subtasks if subtask.place), subtasks[0])


def opening(region: str) -> Subtask:
    """The subtask of opening the drawer that a region is in."""
    return _subtask(("open", region), ())


def _subtask(predicate: tuple[str, ...], objects: Collection[str]) -> Subtask:
    if len(predicate) == 2:
        return Subtask(predicate, _part_of(predicate[1]))
    _, thing, place = predicate
    container = re.sub(r"_contain_region$", "", place)
    return Subtask(predicate, thing, container if container in objects else place)


def _part_of(moved: str) -> str:
    """The part by which a region's drawer, or a fixture, is moved; its own name where it has no such part."""
    for pattern, part in _PARTS.items():
        if found := re.search(pattern, moved):
            return found.expand(part)
    return moved
