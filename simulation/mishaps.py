"""Demonstrations in which something goes wrong before the grasp that holds, as it often does with real robots.

Each is a script for an attempt (policy.py): a mishap, and then the whole task. After all but `never` the task is solved.
The truth's `grasp_step` says which close is the right one: the first after which the fingers lift the target.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from pixel160k.errors import InputError
from pixel160k.seeding import seeded_generator
from simulation.carrying import above, destination_of, obstacles, pick_up, plan
from simulation.environment import CLOSE, OPEN
from simulation.goals import target_of
from simulation.grasping import (
    FINGER_BELOW_TOOL,
    Grasp,
    GraspVariation,
    clearance_cost,
    collision_points,
    downward_rotation,
)
from simulation.policy import (
    CLOSING_STEPS,
    HOVER,
    LIFT,
    NO_PUSH,
    OPENING_STEPS,
    Arm,
    AttemptFailed,
    Script,
    return_home,
)
from simulation.script import do_task

PUSH, PUSH_STEPS, PUSH_PAUSE = (0.01, 0.035), (3, 8), (4, 16)  # m at each control step, and how many of them
MOST_MOVED = 0.02  # m that the target may move in a demonstration that never grasps it
MARGIN = 0.02  # m between the hand and the target, before it is pushed and beside it


def script_of(mishap: str, seed: tuple[Any, ...]) -> Script:
    """The script of a mishap, one of `MISHAPS`; equal seeds give equal mishaps."""

    def script(arm: Arm, variation: GraspVariation) -> None:
        environment = arm.environment
        if not target_of(environment.subtasks).place:
            raise InputError(
                f"task {environment.task_id} of {environment.suite} carries nothing: mishaps happen to what is carried"
            )
        MISHAPS[mishap](arm, variation, seeded_generator("mishap", mishap, *seed, variation.randomness))

    return script


def _miss(arm: Arm, variation: GraspVariation, random: np.random.Generator) -> None:
    """Close on the air above the target, lift the empty hand, then do the task."""
    _close_above(arm, variation, random)
    do_task(arm, variation)


def _beside(arm: Arm, variation: GraspVariation, random: np.random.Generator) -> None:
    """Close beside the target, lift the empty hand, then do the task."""
    _close_beside(arm, variation, random)
    do_task(arm, variation)


def _drop(arm: Arm, variation: GraspVariation, random: np.random.Generator) -> None:
    """Pick up the target, let it fall on the way, then do the task from where it fell."""
    environment = arm.environment
    subtask = target_of(environment.subtasks)
    grasp = pick_up(arm, variation, subtask)
    here = environment.tool_position()
    way = (destination_of(environment, subtask) - here)[:2]
    shift = way / np.linalg.norm(way) * random.uniform(0.05, 0.10)
    low = here - [*-shift, random.uniform(0.06, 0.09)]
    arm.move(low, downward_rotation(grasp.yaw), CLOSE, 40, tolerance=0.015, max_translation=0.04)
    arm.hold(OPENING_STEPS, OPEN)
    arm.move(above(environment, low, LIFT), downward_rotation(grasp.yaw), OPEN, 30, tolerance=0.02)
    do_task(arm, variation)


def _push(arm: Arm, variation: GraspVariation, random: np.random.Generator) -> None:
    """Push the target some centimetres, with open or with closed fingers, then do the task from there."""
    environment = arm.environment
    points = collision_points(environment, environment.root_body(environment.target))
    low, high = points.min(0), points.max(0)
    height = max(low[2] + 0.4 * (high[2] - low[2]), low[2] + 0.02)
    gripper = CLOSE if random.random() < 0.5 else OPEN
    reach = 0.025 if gripper == CLOSE else 0.03  # m, of the fingers along the way
    radius = float(np.linalg.norm((high - low)[:2])) / 2
    away = _clearest(obstacles(environment, environment.target), (low + high) / 2, radius + 0.06, random)
    start = np.array([*((low + high)[:2] / 2 + away * (radius + reach + MARGIN)), height])
    end = start - np.array([*away, 0]) * (MARGIN + random.uniform(0.03, 0.06))
    down = downward_rotation((float(np.arctan2(away[1], away[0])) + np.pi / 2) % np.pi - np.pi / 2)
    arm.move(above(environment, start, HOVER), down, OPEN, 60, tolerance=0.015)
    if gripper == CLOSE:
        arm.hold(CLOSING_STEPS, CLOSE)
    arm.move(start, down, gripper, 50, tolerance=0.012, max_translation=0.03)
    arm.move(end, down, gripper, 40, tolerance=0.012, max_translation=0.02)
    arm.move(above(environment, end, LIFT), down, gripper, 40, tolerance=0.02)
    if gripper == CLOSE:
        arm.hold(OPENING_STEPS, OPEN)
    do_task(arm, variation)


def _nudge(arm: Arm, variation: GraspVariation, random: np.random.Generator) -> None:
    """Do the task while the hand is pushed aside again and again, wherever it moves: demonstrations of the way back.

    As DART does it (arXiv 1703.09327): a policy that has only seen the straight way knows no way back to it.
    """
    arm.pushes = _pushes(random)
    do_task(arm, variation)


def _never(arm: Arm, variation: GraspVariation, random: np.random.Generator) -> None:
    """Close above or beside the target, go with the empty hand towards the destination, open there and go home.

    Raises:
        AttemptFailed: the target moved nevertheless, or the arm did not come home.
    """
    environment = arm.environment
    place = environment.body_position(environment.target)
    miss = _close_above if random.random() < 0.5 else _close_beside
    miss(arm, variation, random, give_up=False)
    here = environment.tool_position()
    way = destination_of(environment, target_of(environment.subtasks)) - here
    way[2] = 0
    arm.move(
        here + way / 2, downward_rotation(0.0), CLOSE, 70, tolerance=0.03
    )  # the rest may be out of the arm's reach
    arm.hold(OPENING_STEPS, OPEN)
    return_home(arm)
    if np.linalg.norm(environment.body_position(environment.target) - place) > MOST_MOVED:
        raise AttemptFailed("the target was moved")
    if not arm.attempt.touched:
        arm.attempt.touched = environment.target
    if arm.attempt.touched != environment.target:
        raise AttemptFailed(f"the fingers touched {arm.attempt.touched} first")


Mishap = Callable[[Arm, GraspVariation, np.random.Generator], None]
MISHAPS: dict[str, Mishap] = {
    "miss": _miss, "beside": _beside, "drop": _drop, "push": _push, "nudge": _nudge, "never": _never,
}  # fmt: skip


NO_MISHAP = "none"
"""The word, among mishaps that come in turn, for a demonstration in which nothing goes wrong."""


def mishap_of(number: int, mishaps: Sequence[str]) -> str:
    """The mishap of one of several demonstrations that take turns, "" for none.

    Args:
        number: of the demonstration.
        mishaps: the turns, of `MISHAPS` and `NO_MISHAP`; without any nothing goes wrong.
    """
    mishap = mishaps[number % len(mishaps)] if mishaps else NO_MISHAP
    return "" if mishap == NO_MISHAP else mishap


def check_mishaps(mishaps: Sequence[str]) -> None:
    """Check that there are such mishaps.

    Raises:
        InputError: there is no such one; lists those there are.
    """
    if unknown := sorted(set(mishaps) - {*MISHAPS, NO_MISHAP}):
        raise InputError(f"unknown mishap {unknown[0]!r}: choose from {', '.join(MISHAPS)}, {NO_MISHAP}")


def _pushes(random: np.random.Generator) -> Iterator[np.ndarray]:
    """What pushes the hand, m (3,) at each control step: nothing for a while, then in one direction for a while."""
    while True:
        yield from repeat(NO_PUSH, int(random.integers(*PUSH_PAUSE)))
        direction = random.normal(size=3)
        push = direction / np.linalg.norm(direction) * random.uniform(*PUSH)
        yield from repeat(push, int(random.integers(*PUSH_STEPS)))


def _close_above(arm: Arm, variation: GraspVariation, random: np.random.Generator, give_up: bool = True) -> None:
    environment = arm.environment
    grasp = plan(arm, variation, target_of(environment.subtasks))
    top = collision_points(environment, environment.root_body(environment.target))[:, 2].max()
    shift = random.uniform(-0.02, 0.02, 2)
    tool = np.array([*(grasp.tool[:2] + shift), top + FINGER_BELOW_TOOL + random.uniform(0.01, 0.03)])
    _close_on_nothing(arm, tool, grasp.yaw, random, give_up)


def _close_beside(arm: Arm, variation: GraspVariation, random: np.random.Generator, give_up: bool = True) -> None:
    environment = arm.environment
    grasp = plan(arm, variation, target_of(environment.subtasks))
    points = collision_points(environment, environment.root_body(environment.target))
    middle = (points.min(0) + points.max(0)) / 2
    everything = np.concatenate([points, obstacles(environment, environment.target)])
    radius = np.linalg.norm((points.max(0) - points.min(0))[:2]) / 2
    places = []
    for angle in np.arange(0, 2 * np.pi, np.pi / 8):
        # The fingers open across the line to the target, so that they come near it.
        yaw = (angle + np.pi / 2) % np.pi - np.pi / 2
        direction = np.array([np.cos(angle), np.sin(angle)])
        tool = np.array([*(middle[:2] + direction * (radius + 0.03 + MARGIN)), grasp.tool[2]])
        cost = clearance_cost(Grasp("across", yaw, tool), everything) + random.uniform(0, 0.01)
        places.append((cost, tool, yaw))
    _, tool, yaw = min(places, key=lambda place: place[0])
    _close_on_nothing(arm, tool, yaw, random, give_up)


def _close_on_nothing(arm: Arm, tool: np.ndarray, yaw: float, random: np.random.Generator, give_up: bool) -> None:
    """Close the fingers at a place where nothing is, and lift the hand; open again if it gives up."""
    environment, down = arm.environment, downward_rotation(yaw)
    arm.move(above(environment, tool, HOVER), down, OPEN, 60, tolerance=0.015)
    arm.move(tool, down, OPEN, 50, tolerance=0.01, max_translation=0.03)
    arm.hold(CLOSING_STEPS, CLOSE)
    rise = random.uniform(0.04, LIFT)
    arm.move(
        above(environment, environment.tool_position(), rise), down, CLOSE, 50, tolerance=0.02, max_translation=0.04
    )
    if give_up:
        arm.hold(OPENING_STEPS, OPEN)


def _clearest(points: np.ndarray, middle: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """The direction (2,) from an object's middle in which a hand, and opposite to it the object, have the most room."""
    angles = np.arange(0, 2 * np.pi, np.pi / 8) + random.uniform(0, np.pi / 8)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    near = points[points[:, 2] > middle[2] - 0.02][:, :2]  # not what the object stands on

    def room(direction: np.ndarray) -> float:
        ends = middle[:2] + radius * np.stack([direction, -direction])
        return np.linalg.norm(near[None] - ends[:, None], axis=2).min(initial=0.08) + random.uniform(0, 0.01)

    return max(directions, key=room)
