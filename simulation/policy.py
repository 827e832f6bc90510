"""A scripted pick-and-place demonstrator, which knows the true poses of all objects.

An attempt runs through fixed phases: above the object, down, close, lift, carry, lower, open, retreat, home, rest. It
stores the simulator's state before every action, and which object the fingers touched first; nothing is rendered here.
The way home belongs to the demonstration: without it the arm would hide the spot from which the object was taken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from simulation.environment import CLOSE, OPEN, TaskEnvironment
from simulation.grasping import (
    COMFORTABLE_STRETCH,
    GRASP_VARIATIONS,
    MAX_STRETCH,
    Grasp,
    GraspVariation,
    arm_stretch,
    collision_points,
    downward_rotation,
    plan_grasp,
)
from simulation.rotations import vector_from_matrix
from simulation.thinning import ROTATION_UNIT, TRANSLATION_UNIT

CLOSING_STEPS, OPENING_STEPS, RESTING_STEPS = 14, 10, 8
HOME_TOLERANCE, LEAST_LIFT = 0.03, 0.03  # m
HOVER, LIFT = 0.10, 0.12  # m above the grasp before the way down, and up after closing or opening the fingers
NO_PUSH = np.zeros(3)
LEAST_RISE = 0.05  # m, where the arm's reach allows no more

Goal = np.ndarray | Callable[[], np.ndarray]
"""Where the tool shall go, (3,) m in the world frame; or a function that is asked for it at every step."""


@dataclass
class Attempt:
    """What happened in one attempt; `actions` and `states` have one entry per control step (20 Hz)."""

    solved: bool = False
    failure: str = ""  # why it is not solved, else ""
    actions: list[np.ndarray] = field(default_factory=list)  # float32 (7,) each, as executed
    states: list[np.ndarray] = field(default_factory=list)  # the simulator's state before the action
    touched: str = ""  # the first movable instance the fingers touched
    touch_step: int = -1  # the step whose action made them touch
    grasp_step: int = -1  # the step that closes the fingers on what they then lift, the first time
    home_step: int = -1  # the first step of the way home


class AttemptFailed(Exception):
    """Raised inside an attempt as soon as it can no longer succeed."""


def run_attempt(
    environment: TaskEnvironment,
    initial_state: int,
    variation: GraspVariation = GRASP_VARIATIONS[0],
    script: "Script | None" = None,
) -> Attempt:
    """Reset the scene to an initial state and run a script once, by default `pick_and_place`.

    The attempt is solved if the script ends without `AttemptFailed`.
    """
    environment.reset(initial_state)
    arm = Arm(environment)
    try:
        (script or pick_and_place)(arm, variation)
    except AttemptFailed as failure:
        arm.attempt.failure = str(failure)
    arm.attempt.solved = not arm.attempt.failure
    return arm.attempt


class Arm:
    """Moves the tool by proportional control of its position and of the hand's rotation, and stores every step."""

    def __init__(self, environment: TaskEnvironment) -> None:
        self.environment = environment
        self.home = environment.tool_position()
        self.attempt = Attempt()
        self.pushes: Iterator[np.ndarray] = repeat(NO_PUSH)  # what pushes the moving tool, m (3,) at each step

    def step(self, translation: np.ndarray, rotation: np.ndarray, gripper: float, push: np.ndarray = NO_PUSH) -> None:
        """One control step towards `translation` (m) and `rotation` (axis-angle, rad), both (3,).

        `push` (m) is carried out too, but it is no part of the action that is stored: what is demonstrated is the way back.
        """
        action = np.array(
            [
                *np.clip(translation / TRANSLATION_UNIT, -1, 1),
                *np.clip(rotation / ROTATION_UNIT, -1, 1),
                gripper,
            ],
            dtype=np.float32,
        )
        attempt = self.attempt
        attempt.actions.append(action)
        attempt.states.append(self.environment.state())
        carried_out = action.copy()
        carried_out[:3] = np.clip(action[:3] + push / TRANSLATION_UNIT, -1, 1)
        self.environment.step(carried_out)
        if not attempt.touched and (touched := self.environment.touched_object()):
            attempt.touched, attempt.touch_step = touched, len(attempt.actions) - 1

    def hold(self, steps: int, gripper: float) -> None:
        """Stand still for some steps, while the fingers close or open."""
        for _ in range(steps):
            self.step(np.zeros(3), np.zeros(3), gripper)

    def move(
        self,
        goal: Goal,
        rotation: np.ndarray,
        gripper: float,
        max_steps: int,
        tolerance: float = 0.01,
        max_translation: float = 0.05,
    ) -> None:
        """Move the tool to its goal, by at most `max_translation` m per step, until it arrives or the steps run out."""
        for _ in range(max_steps):
            position = goal() if callable(goal) else goal
            error = position - self.environment.tool_position()
            turn = vector_from_matrix(rotation @ self.environment.hand_rotation().T)
            distance = float(np.linalg.norm(error))
            if distance < tolerance and np.linalg.norm(turn) < 0.06:
                return
            self.step(error * min(1.0, max_translation / max(distance, 1e-9)), turn, gripper, next(self.pushes))


Script = Callable[[Arm, GraspVariation], None]
"""What the arm does in one attempt; it raises `AttemptFailed` as soon as that cannot succeed."""


def _up(height: float) -> np.ndarray:
    return np.array([0, 0, height])


def above(environment: TaskEnvironment, position: np.ndarray, rise: float) -> np.ndarray:
    """The point `rise` m above a position, or less (down to LEAST_RISE) where the arm would be stretched too far."""
    for height in np.arange(rise, LEAST_RISE, -0.01):
        if arm_stretch(environment.shoulder_position(), position + _up(height)) < MAX_STRETCH:
            return position + _up(height)
    return position + _up(min(rise, LEAST_RISE))


def pick_and_place(arm: Arm, variation: GraspVariation) -> None:
    """Pick up the target, place it, go home.

    Raises:
        AttemptFailed: the environment reports no success, the arm is not home, or the fingers touched another movable
            object before the target: that would demonstrate something else than the instruction.
    """
    environment = arm.environment
    grasp = pick_up(arm, variation)
    _place(arm, grasp)
    return_home(arm)
    if not environment.succeeded():
        raise AttemptFailed("the environment reports no success at the end")


def plan(arm: Arm, variation: GraspVariation) -> Grasp:
    """Where and how to grasp the target as it stands now."""
    environment = arm.environment
    points = collision_points(environment, environment.root_body(environment.target))
    carry = destination_of(environment) - (points.min(0) + points.max(0)) / 2
    return plan_grasp(points, obstacles(environment), carry, environment.shoulder_position(), variation)


def obstacles(environment: TaskEnvironment) -> np.ndarray:
    """Points (n, 3) of everything but robot and target, in metres in the world frame."""
    body = environment.root_body(environment.target)
    others = [other for other in environment.object_bodies() if other != body]
    return np.concatenate([collision_points(environment, other) for other in others])


def pick_up(arm: Arm, variation: GraspVariation) -> Grasp:
    """Grasp the target and lift it clear of its surroundings.

    Raises:
        AttemptFailed: it was not lifted, or the fingers touched another movable object before it.
    """
    environment = arm.environment
    grasp = plan(arm, variation)
    height_before = environment.body_position(environment.target)[2]
    offset = grasp.tool - environment.body_position(environment.target)
    down = downward_rotation(grasp.yaw)

    def tool_at_grasp() -> np.ndarray:  # follows an object that still slides
        return environment.body_position(environment.target) + offset

    arm.move(lambda: above(environment, tool_at_grasp(), HOVER), down, OPEN, 60, tolerance=0.012)
    arm.move(tool_at_grasp, down, OPEN, 50, tolerance=0.006, max_translation=0.03)
    closing = len(arm.attempt.actions)
    arm.hold(CLOSING_STEPS, CLOSE)
    arm.move(
        above(environment, environment.tool_position(), LIFT), down, CLOSE, 50, tolerance=0.02, max_translation=0.04
    )
    if environment.body_position(environment.target)[2] - height_before < LEAST_LIFT:
        raise AttemptFailed("the object was not lifted")
    if arm.attempt.touched != environment.target:
        raise AttemptFailed(f"the fingers touched {arm.attempt.touched} first")
    if arm.attempt.grasp_step < 0:
        arm.attempt.grasp_step = closing
    return grasp


def _place(arm: Arm, grasp: Grasp) -> None:
    """Carry the held object over its destination, set it down and let go."""
    environment = arm.environment
    body = environment.root_body(environment.target)
    hanging = environment.tool_position()[2] - collision_points(environment, body)[:, 2].min()
    destination = _destination_in_reach(environment, hanging)
    down = downward_rotation(0.0 if grasp.kind == "across" else grasp.yaw)

    def object_over_destination(height: float) -> Callable[[], np.ndarray]:
        def tool() -> np.ndarray:
            held = environment.tool_position() - environment.body_position(environment.target)
            return np.array([*(destination[:2] + held[:2]), height])

        return tool

    carrying_height = max(destination[2] + hanging + 0.05, environment.tool_position()[2])
    straight_up = np.array([*environment.tool_position()[:2], carrying_height])
    arm.move(straight_up, downward_rotation(grasp.yaw), CLOSE, 50, tolerance=0.02, max_translation=0.04)
    arm.move(object_over_destination(carrying_height), down, CLOSE, 70, tolerance=0.012)
    if "basket" in environment.destination:  # let go inside it, the palm above its edge
        release_height = max(destination[2] - 0.03 + hanging, destination[2] + 0.01)
    else:
        release_height = destination[2] + hanging + 0.008
    arm.move(object_over_destination(release_height), down, CLOSE, 40, tolerance=0.008, max_translation=0.03)
    arm.hold(OPENING_STEPS, OPEN)
    arm.move(above(environment, environment.tool_position(), LIFT), down, OPEN, 20, tolerance=0.02)


def destination_of(environment: TaskEnvironment) -> np.ndarray:
    """The middle of the destination and the height of its top, (3,) m."""
    site = environment.site_position(environment.destination)
    if site is not None:
        return site
    points = collision_points(environment, environment.root_body(environment.destination))
    low, high = points.min(0), points.max(0)
    return np.array([*((low + high)[:2] / 2), high[2]])


def _destination_in_reach(environment: TaskEnvironment, hanging: float) -> np.ndarray:
    """The destination; in a region, moved towards the robot as far as the stretched arm needs and the region allows."""
    destination, size = destination_of(environment), environment.site_size(environment.destination)
    if size is None:
        return destination
    moved = destination
    shoulder = environment.shoulder_position()
    towards_robot = shoulder[:2] - destination[:2]
    towards_robot /= np.linalg.norm(towards_robot)
    for shift in np.arange(0, size[:2].min() / 2, 0.005):
        moved = np.array([*(destination[:2] + shift * towards_robot), destination[2]])
        if arm_stretch(shoulder, moved + _up(hanging + LEAST_RISE)) < COMFORTABLE_STRETCH:
            break
    return moved


def return_home(arm: Arm) -> None:
    """Move the arm out of the picture's middle, back to where it started, and rest there.

    Raises:
        AttemptFailed: it did not come home.
    """
    arm.attempt.home_step = len(arm.attempt.actions)
    arm.move(arm.home, downward_rotation(0.0), OPEN, 50, tolerance=0.01)
    arm.hold(RESTING_STEPS, OPEN)
    if np.linalg.norm(arm.environment.tool_position() - arm.home) > HOME_TOLERANCE:
        raise AttemptFailed("the arm did not come home")
