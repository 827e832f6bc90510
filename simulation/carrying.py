"""How an object is carried: grasped from above, lifted, brought over its destination, set down and let go.

The phases are fixed: above the object, down, close, lift, carry, lower, open, retreat.
"""

from collections.abc import Callable

import numpy as np

from simulation.environment import CLOSE, OPEN, TaskEnvironment
from simulation.fixtures import outwards_of
from simulation.goals import Subtask, opening
from simulation.grasping import (
    COMFORTABLE_STRETCH,
    MAX_STRETCH,
    Grasp,
    GraspVariation,
    arm_stretch,
    collision_points,
    downward_rotation,
    plan_grasp,
)
from simulation.policy import CLOSING_STEPS, HOVER, LIFT, OPENING_STEPS, Arm, AttemptFailed

LEAST_LIFT = 0.03  # m
LEAST_RISE = 0.05  # m, where the arm's reach allows no more
SIDE_BY_SIDE, IN_DRAWER = 0.1, 0.02  # m between two things, and from a drawer's middle outwards and down
OVER_DRAWER = 0.1  # m above where a thing is set down in it: over its front, which would be pushed in
UP = np.array([0.0, 0.0, 1.0])


def _up(height: float) -> np.ndarray:
    return np.array([0, 0, height])


def above(environment: TaskEnvironment, position: np.ndarray, rise: float) -> np.ndarray:
    """The point `rise` m above a position, or less (down to LEAST_RISE) where the arm would be stretched too far."""
    for height in np.arange(rise, LEAST_RISE, -0.01):
        if arm_stretch(environment.shoulder_position(), position + _up(height)) < MAX_STRETCH:
            return position + _up(height)
    return position + _up(min(rise, LEAST_RISE))


def carry(arm: Arm, variation: GraspVariation, subtask: Subtask) -> None:
    """Pick up a thing and place it.

    Raises:
        AttemptFailed: it was not lifted, or the fingers touched another movable object before it.
    """
    grasp = pick_up(arm, variation, subtask)
    _place(arm, grasp, subtask)


def plan(arm: Arm, variation: GraspVariation, subtask: Subtask) -> Grasp:
    """Where and how to grasp a thing as it stands now."""
    environment = arm.environment
    points = collision_points(environment, environment.root_body(subtask.thing))
    way = destination_of(environment, subtask) - (points.min(0) + points.max(0)) / 2
    return plan_grasp(points, obstacles(environment, subtask.thing), way, environment.shoulder_position(), variation)


def obstacles(environment: TaskEnvironment, thing: str) -> np.ndarray:
    """Points (n, 3) of everything but the robot and this thing, in metres in the world frame."""
    body = environment.root_body(thing)
    others = [other for other in environment.object_bodies() if other != body]
    return np.concatenate([collision_points(environment, other) for other in others])


def pick_up(arm: Arm, variation: GraspVariation, subtask: Subtask) -> Grasp:
    """Grasp the subtask's thing and lift it clear of its surroundings.

    Raises:
        AttemptFailed: it was not lifted, or the fingers touched another movable object before it.
    """
    environment, thing = arm.environment, subtask.thing
    grasp = plan(arm, variation, subtask)
    height_before = environment.body_position(thing)[2]
    offset = grasp.tool - environment.body_position(thing)
    down = downward_rotation(grasp.yaw)

    def tool_at_grasp() -> np.ndarray:  # follows an object that still slides
        return environment.body_position(thing) + offset

    arm.move(lambda: above(environment, tool_at_grasp(), HOVER), down, OPEN, 60, tolerance=0.012)
    arm.move(tool_at_grasp, down, OPEN, 50, tolerance=0.006, max_translation=0.03)
    closing = len(arm.attempt.actions)
    arm.hold(CLOSING_STEPS, CLOSE)
    arm.move(
        above(environment, environment.tool_position(), LIFT), down, CLOSE, 50, tolerance=0.02, max_translation=0.04
    )
    if environment.body_position(thing)[2] - height_before < LEAST_LIFT:
        raise AttemptFailed("the object was not lifted")
    arm.check_touched(thing)
    if arm.attempt.grasp_step < 0 and thing == environment.target:
        arm.attempt.grasp_step = closing
    return grasp


def _place(arm: Arm, grasp: Grasp, subtask: Subtask) -> None:
    """Carry the held object over its destination, set it down and let go."""
    environment, thing = arm.environment, subtask.thing
    body = environment.root_body(thing)
    hanging = environment.tool_position()[2] - collision_points(environment, body)[:, 2].min()
    destination = _destination_in_reach(environment, subtask, hanging)
    down = downward_rotation(_placing_yaw(environment, grasp, subtask))

    def object_over_destination(height: float) -> Callable[[], np.ndarray]:
        def tool() -> np.ndarray:
            held = environment.tool_position() - environment.body_position(thing)
            return np.array([*(destination[:2] + held[:2]), height])

        return tool

    rise = OVER_DRAWER if environment.has_part(opening(subtask.place).thing) else 0.05
    carrying_height = max(destination[2] + hanging + rise, environment.tool_position()[2])
    straight_up = np.array([*environment.tool_position()[:2], carrying_height])
    arm.move(straight_up, downward_rotation(grasp.yaw), CLOSE, 50, tolerance=0.02, max_translation=0.04)
    arm.move(object_over_destination(carrying_height), down, CLOSE, 70, tolerance=0.012)
    if "basket" in subtask.place:  # let go inside it, the palm above its edge
        release_height = max(destination[2] - 0.03 + hanging, destination[2] + 0.01)
    else:
        release_height = destination[2] + hanging + 0.008
    arm.move(object_over_destination(release_height), down, CLOSE, 40, tolerance=0.008, max_translation=0.03)
    arm.hold(OPENING_STEPS, OPEN)
    arm.move(above(environment, environment.tool_position(), LIFT), down, OPEN, 20, tolerance=0.02)


def _placing_yaw(environment: TaskEnvironment, grasp: Grasp, subtask: Subtask) -> float:
    """How the hand is turned while it places a thing, rad: over a drawer with the palm's narrow side towards the cabinet."""
    handle = opening(subtask.place).thing
    if environment.has_part(handle):
        x, y, _ = outwards_of(environment, handle)
        yaw = float(np.arctan2(y, x))
        return min((yaw, yaw + np.pi, yaw - np.pi), key=lambda turned: abs(turned - grasp.yaw))
    return 0.0 if grasp.kind == "across" else grasp.yaw


def destination_of(environment: TaskEnvironment, subtask: Subtask) -> np.ndarray:
    """The middle of the place that a thing is carried to and the height of its top, (3,) m.

    In a drawer it is a little before and below the middle, clear of the cabinet. Several things on one region stand side by side, where
    the opening fingers of the second do not meet the first.
    """
    site = environment.site_position(subtask.place)
    if site is None:
        points = collision_points(environment, environment.root_body(subtask.place))
        low, high = points.min(0), points.max(0)
        return np.array([*((low + high)[:2] / 2), high[2]])
    handle = opening(subtask.place).thing
    if environment.has_part(handle):
        site += IN_DRAWER * (outwards_of(environment, handle) - UP)
    together = [other.thing for other in environment.subtasks if other.place == subtask.place]
    if len(together) > 1:
        site[0] += (together.index(subtask.thing) - (len(together) - 1) / 2) * SIDE_BY_SIDE
    return site


def _destination_in_reach(environment: TaskEnvironment, subtask: Subtask, hanging: float) -> np.ndarray:
    """The destination; in a region, moved towards the robot as far as the stretched arm needs and the region allows."""
    destination, size = destination_of(environment, subtask), environment.site_size(subtask.place)
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
