"""What every scripted demonstration shares: an attempt, which is what is stored of it, and the arm that it moves.

An attempt stores the simulator's state before every action, and which object the fingers touched first; nothing is
rendered here. What the arm does is a script: carrying.py, fixtures.py, mishaps.py, put together in script.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from simulation.environment import OPEN, TaskEnvironment
from simulation.grasping import GRASP_VARIATIONS, GraspVariation, downward_rotation
from simulation.rotations import vector_from_matrix
from simulation.thinning import ROTATION_UNIT, TRANSLATION_UNIT

CLOSING_STEPS, OPENING_STEPS, RESTING_STEPS = 14, 10, 8
HOME_TOLERANCE = 0.03  # m
HOVER, LIFT = 0.10, 0.12  # m above the grasp before the way down, and up after closing or opening the fingers
NO_PUSH = np.zeros(3)

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
    grasp_step: int = -1  # the step that closes the fingers on the target, which they then move, the first time
    home_step: int = -1  # the first step of the way home


class AttemptFailed(Exception):
    """Raised inside an attempt as soon as it can no longer succeed."""


def run_attempt(
    environment: TaskEnvironment,
    initial_state: int,
    script: "Script",
    variation: GraspVariation = GRASP_VARIATIONS[0],
) -> Attempt:
    """Reset the scene to an initial state and run a script once.

    The attempt is solved if the script ends without `AttemptFailed`.
    """
    environment.reset(initial_state)
    arm = Arm(environment, initial_state)
    try:
        script(arm, variation)
    except AttemptFailed as failure:
        arm.attempt.failure = str(failure)
    arm.attempt.solved = not arm.attempt.failure
    return arm.attempt


class Arm:
    """Moves the tool by proportional control of its position and of the hand's rotation, and stores every step."""

    def __init__(self, environment: TaskEnvironment, initial_state: int) -> None:
        self.environment, self.initial_state = environment, initial_state
        self.home = environment.tool_position()
        self.attempt = Attempt()
        self.pushes: Iterator[np.ndarray] = repeat(NO_PUSH)  # what pushes the moving tool, m (3,) at each step
        self._touched = ""  # the first movable instance the fingers touched since `begin`

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
        if not self._touched and (touched := self.environment.touched_object()):
            self._touched = touched
            if not attempt.touched:
                attempt.touched, attempt.touch_step = touched, len(attempt.actions) - 1

    def begin(self) -> None:
        """Begin with something that the fingers have not touched yet."""
        self._touched = ""

    def check_touched(self, meant: str) -> None:
        """Check what the fingers touched since `begin`.

        Raises:
            AttemptFailed: the first of it was something else than what is meant: that would demonstrate something else.
        """
        if self._touched != meant:
            raise AttemptFailed(f"the fingers touched {self._touched or 'nothing'} first")

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
