"""A scripted demonstrator for what is moved without being carried away: it opens drawers and turns knobs.

The joint says what to do: a part that slides is a handle, held by its bar from the front and pulled; a part on a hinge
is a knob, held across its blade from above and turned. As in policy.py, the attempt ends with the arm back home.
"""

import numpy as np

from pixel160k.seeding import seeded_generator
from simulation.environment import CLOSE, OPEN
from simulation.grasping import GraspVariation, downward_rotation
from simulation.policy import CLOSING_STEPS, HOVER, LIFT, OPENING_STEPS, Arm, AttemptFailed, Script, return_home
from simulation.rotations import matrix_from_vector

_SLIDE = 2  # mjtJoint
_UP = np.array([0.0, 0.0, 1.0])
_BAR_BEFORE_MIDDLE = 0.006  # m, from the middle of a handle's mesh to its bar
# The hand's tilt from straight down, rad: at less, the upper finger meets the handle above; at more, the palm what stands
# before the drawer.
_TILTS = (1.34, 1.42)
_ALONG_BAR = 0.012  # m, at most, from the middle of the bar
_BEYOND = 0.01  # m, pulled beyond the end of the drawer's way
_BLADE_ABOVE_MIDDLE = 0.012  # m: the finger tips stay above the knob's dish
_YAW_ON_BLADE = 0.15  # rad, at most, between fingers and blade
_TURNS = (0.9, 1.2)  # rad: a stove is on from 0.5 on
_TURNING_STEPS = 33


def operate_fixture(seed: int) -> Script:
    """The script for a task of `HANDLE_TASKS`: move the target as far as the task wants, let go, go home.

    `seed` and the attempt decide where exactly the part is held; equal seeds give equal demonstrations.
    """

    def script(arm: Arm, variation: GraspVariation) -> None:
        environment = arm.environment
        random = seeded_generator("fixture", environment.suite, environment.task_id, seed, variation.randomness)
        slides = environment.model.jnt_type[environment.part_joint(environment.target)] == _SLIDE
        (_pull if slides else _turn)(arm, random)
        if arm.attempt.touched != environment.target:
            raise AttemptFailed(f"the fingers touched {arm.attempt.touched or 'nothing'} first")
        return_home(arm)
        if not environment.succeeded():
            raise AttemptFailed("the environment reports no success at the end")

    return script


def _pull(arm: Arm, random: np.random.Generator) -> None:
    """Close the fingers above and below a handle's bar, and pull it as far as it goes."""
    environment = arm.environment
    joint = environment.part_joint(environment.target)
    way = max(environment.model.jnt_range[joint], key=abs)  # m, with its sign
    outwards = environment.data.xaxis[joint] * np.sign(way)
    along_bar = np.cross(outwards, _UP)
    tilt, shift = random.uniform(*_TILTS), random.uniform(-_ALONG_BAR, _ALONG_BAR)
    pointing = -np.sin(tilt) * outwards - np.cos(tilt) * _UP
    hand = np.column_stack([along_bar, np.cross(pointing, along_bar), pointing])
    bar = environment.part_position(environment.target) + _BAR_BEFORE_MIDDLE * outwards + shift * along_bar
    arm.move(bar - HOVER * pointing + 0.03 * _UP, hand, OPEN, 80)
    arm.move(bar, hand, OPEN, 50, tolerance=0.006, max_translation=0.03)
    arm.attempt.grasp_step = len(arm.attempt.actions)
    arm.hold(CLOSING_STEPS, CLOSE)
    pulled = environment.tool_position() + (abs(way) + _BEYOND) * outwards
    arm.move(pulled, hand, CLOSE, 60, max_translation=0.03)
    arm.hold(OPENING_STEPS, OPEN)
    arm.move(environment.tool_position() - HOVER * pointing, hand, OPEN, 30, tolerance=0.02)


def _turn(arm: Arm, random: np.random.Generator) -> None:
    """Close the fingers on both sides of a knob's blade, and turn it about its axis."""
    environment = arm.environment
    joint = environment.part_joint(environment.target)
    axis = environment.data.xaxis[joint] * np.sign(max(environment.model.jnt_range[joint], key=abs))
    middle = environment.part_position(environment.target)
    blade = np.array([*environment.data.xanchor[joint][:2], middle[2] + _BLADE_ABOVE_MIDDLE])
    yaw, turn = random.uniform(-_YAW_ON_BLADE, _YAW_ON_BLADE), random.uniform(*_TURNS)
    hand = downward_rotation(yaw)
    arm.move(blade + HOVER * _UP, hand, OPEN, 60, tolerance=0.012)
    arm.move(blade, hand, OPEN, 50, tolerance=0.006, max_translation=0.03)
    arm.attempt.grasp_step = len(arm.attempt.actions)
    arm.hold(CLOSING_STEPS, CLOSE)
    for angle in np.linspace(0, turn, _TURNING_STEPS):
        hand = matrix_from_vector(axis * angle) @ downward_rotation(yaw)
        arm.move(blade, hand, CLOSE, 1, tolerance=0)
    arm.hold(OPENING_STEPS, OPEN)
    arm.move(environment.tool_position() + LIFT * _UP, hand, OPEN, 30, tolerance=0.02)
