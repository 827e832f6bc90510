"""How a part of a fixture is moved, which is not carried away: drawers and stove knobs.

The joint and what is wanted of it say what to do. A drawer's handle is held by its bar from the front and pulled, or pushed
with closed fingers; a knob is held across its blade from above and turned.
"""

import numpy as np

from pixel160k.seeding import seeded_generator
from simulation.environment import CLOSE, OPEN, TaskEnvironment
from simulation.goals import Subtask
from simulation.grasping import GraspVariation, downward_rotation
from simulation.policy import CLOSING_STEPS, HOVER, LIFT, OPENING_STEPS, Arm, AttemptFailed
from simulation.rotations import matrix_from_vector

_SLIDE = 2  # mjtJoint
_UP = np.array([0.0, 0.0, 1.0])
_BAR_BEFORE_MIDDLE = 0.006  # m, from the middle of a handle's mesh to its bar
# The hand's tilt from straight down, rad: at less, the upper finger meets the handle above; at more, the palm what stands
# before the drawer.
_TILTS = (1.34, 1.42)
_ALONG_BAR = 0.012  # m, at most, from the middle of the bar
_BEYOND = 0.01  # m, pulled beyond the end of the drawer's way
_PUSHING_TILTS = (0.55, 0.7)  # rad: the palm stays clear of the handles above, the wrist of what stands before
_BEFORE, _AHEAD = 0.04, 0.03  # m: where the fingers close before what they push, and how far beyond it they are sent
_PUSHING_STEPS = 90  # at most
_BLADE_ABOVE_MIDDLE = 0.012  # m: the finger tips stay above the knob's dish
_YAW_ON_BLADE = 0.15  # rad, at most, between fingers and blade
_TURNS = (0.9, 1.2)  # rad: a stove is on from 0.5 on
_TURNING_STEPS = 33


def move_part(arm: Arm, variation: GraspVariation, subtask: Subtask) -> None:
    """Move a part of a fixture until the subtask is done, and let go.

    The initial state and the attempt decide where exactly it is held; equal ones give equal demonstrations.

    Raises:
        AttemptFailed: it was not moved far enough, or the fingers touched something else.
    """
    environment, part, wanted = arm.environment, subtask.thing, subtask.predicate[0]
    random = seeded_generator(
        "fixture", environment.suite, environment.task_id, arm.initial_state, variation.randomness
    )
    moves = environment.has_part(part)
    slides = moves and environment.model.jnt_type[environment.part_joint(part)] == _SLIDE
    if slides and wanted == "open":
        _pull(arm, random, part)
    elif slides:
        _push_in(arm, random, subtask)
    elif moves and wanted == "turnon":
        _turn(arm, random, part)
    else:
        raise AttemptFailed(f"there is no script to {wanted} {part}")
    arm.check_touched(part if environment.has_part(environment.target) else "")
    if not environment.holds(subtask.predicate):
        raise AttemptFailed(f"{part} was not moved far enough")


def _pull(arm: Arm, random: np.random.Generator, part: str) -> None:
    """Close the fingers above and below a handle's bar, and pull it as far as it goes."""
    environment = arm.environment
    way = max(abs(environment.model.jnt_range[environment.part_joint(part)]))
    outwards = outwards_of(environment, part)
    along_bar = np.cross(outwards, _UP)
    tilt, shift = random.uniform(*_TILTS), random.uniform(-_ALONG_BAR, _ALONG_BAR)
    pointing = -np.sin(tilt) * outwards - np.cos(tilt) * _UP
    hand = np.column_stack([along_bar, np.cross(pointing, along_bar), pointing])
    bar = environment.part_position(part) + _BAR_BEFORE_MIDDLE * outwards + shift * along_bar
    arm.move(bar - HOVER * pointing + 0.03 * _UP, hand, OPEN, 80)
    arm.move(bar, hand, OPEN, 50, tolerance=0.006, max_translation=0.03)
    _close(arm, part)
    pulled = environment.tool_position() + (way + _BEYOND) * outwards
    arm.move(pulled, hand, CLOSE, 60, max_translation=0.03)
    arm.hold(OPENING_STEPS, OPEN)
    arm.move(environment.tool_position() - HOVER * pointing, hand, OPEN, 30, tolerance=0.02)


def _push_in(arm: Arm, random: np.random.Generator, subtask: Subtask) -> None:
    """Close the fingers before a handle's bar, the palm's narrow side towards the drawer, and push it in."""
    environment, part = arm.environment, subtask.thing
    outwards = outwards_of(environment, part)
    along_bar = np.cross(outwards, _UP)
    tilt, shift = random.uniform(*_PUSHING_TILTS), random.uniform(-_ALONG_BAR, _ALONG_BAR)
    pointing = -np.sin(tilt) * outwards - np.cos(tilt) * _UP
    across = along_bar if (environment.hand_rotation() @ [0, 1, 0]) @ along_bar >= 0 else -along_bar
    hand = np.column_stack([np.cross(across, pointing), across, pointing])

    def before_bar(distance: float) -> np.ndarray:
        return environment.part_position(part) + (_BAR_BEFORE_MIDDLE + distance) * outwards + shift * along_bar

    arm.move(before_bar(_BEFORE) + HOVER * _UP, hand, OPEN, 80, tolerance=0.012)
    arm.move(before_bar(_BEFORE), hand, OPEN, 50, tolerance=0.012, max_translation=0.04)
    _close(arm, part)
    for _ in range(_PUSHING_STEPS):
        if environment.holds(subtask.predicate):
            break
        arm.move(before_bar(-_AHEAD), hand, CLOSE, 1, tolerance=0, max_translation=0.04)
    arm.hold(OPENING_STEPS, OPEN)
    arm.move(environment.tool_position() - HOVER * pointing, hand, OPEN, 30, tolerance=0.02)


def outwards_of(environment: TaskEnvironment, handle: str) -> np.ndarray:
    """The direction (3,) in which a drawer opens."""
    joint = environment.part_joint(handle)
    return environment.data.xaxis[joint] * np.sign(max(environment.model.jnt_range[joint], key=abs))


def _turn(arm: Arm, random: np.random.Generator, part: str) -> None:
    """Close the fingers on both sides of a knob's blade, and turn it about its axis."""
    environment = arm.environment
    joint = environment.part_joint(part)
    axis = environment.data.xaxis[joint] * np.sign(max(environment.model.jnt_range[joint], key=abs))
    middle = environment.part_position(part)
    blade = np.array([*environment.data.xanchor[joint][:2], middle[2] + _BLADE_ABOVE_MIDDLE])
    yaw, turn = random.uniform(-_YAW_ON_BLADE, _YAW_ON_BLADE), random.uniform(*_TURNS)
    hand = downward_rotation(yaw)
    arm.move(blade + HOVER * _UP, hand, OPEN, 60, tolerance=0.012)
    arm.move(blade, hand, OPEN, 50, tolerance=0.006, max_translation=0.03)
    _close(arm, part)
    for angle in np.linspace(0, turn, _TURNING_STEPS):
        hand = matrix_from_vector(axis * angle) @ downward_rotation(yaw)
        arm.move(blade, hand, CLOSE, 1, tolerance=0)
    arm.hold(OPENING_STEPS, OPEN)
    arm.move(environment.tool_position() + LIFT * _UP, hand, OPEN, 30, tolerance=0.02)


def _close(arm: Arm, part: str) -> None:
    """Close the fingers on a part, which they then move."""
    if arm.attempt.grasp_step < 0 and part == arm.environment.target:
        arm.attempt.grasp_step = len(arm.attempt.actions)
    arm.hold(CLOSING_STEPS, CLOSE)
