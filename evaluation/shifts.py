"""Shifts of the domain in LIBERO: a kind and a level of 1 to 5, as `camera-3`, made of a scene's name and a seed alone.

The kinds are the mechanisms of LIBERO-Plus (github.com/sylvestf/LIBERO-plus); docs/shifts.md maps its seven categories and
the paper's five shifts onto them, and says which levels are its and which are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.noise import KINDS as NOISES
from pixel160k.seeding import seeded_generator
from simulation import arrangement, looks
from simulation.environment import TaskEnvironment
from simulation.libero import load_task

NONE = "none"
NOISE, WORDING, DISTRACTORS = "noise", "wording", "distractors"
_CHANGES: dict[str, Callable[[TaskEnvironment, int, np.random.Generator], None]] = {
    "camera": looks.move_camera,
    "light": looks.change_light,
    "background": looks.change_background,
    "table": looks.change_table,
    DISTRACTORS: arrangement.add_objects,
    "places": arrangement.displace_objects,
    "robot": arrangement.pose_arm,
}
KINDS = (*_CHANGES, NOISE, WORDING)
LEVELS = range(1, 6)


@dataclass(frozen=True)
class Shift:
    """A shift of one kind; of level 0 there is none.

    Attributes:
        kind: of `KINDS`, "none" for none.
        level: 1 to 5, ever farther from the scene as it is.
    """

    kind: str = NONE
    level: int = 0

    @classmethod
    def named(cls, name: str) -> "Shift":
        """The shift of a name, as "camera-3"; "none" names none.

        Raises:
            ValueError: there is none of this name.
        """
        kind, _, level = name.partition("-")
        if name == NONE:
            return cls()
        if kind not in KINDS or level not in map(str, LEVELS):
            raise ValueError(f"has {name!r}: a shift is {NONE}, or one of {', '.join(KINDS)} with a level, as camera-3")
        return cls(kind, int(level))

    def draws(self, suite: str, task_id: int, initial_state: int, seed: int) -> np.random.Generator:
        """What it draws from in a scene: the same at each level, whichever of two alike objects is meant."""
        return seeded_generator("shift", self.kind, suite, task_id, initial_state, seed)

    def change(self, suite: str, seed: int) -> Callable[[TaskEnvironment, int], None] | None:
        """What it changes in the simulator, for `TaskEnvironment.change`; None where it changes nothing there."""
        if self.kind not in _CHANGES:
            return None

        def change(environment: TaskEnvironment, initial_state: int) -> None:
            rng = self.draws(suite, environment.task_id, initial_state, seed)
            _CHANGES[self.kind](environment, self.level, rng)

        return change

    def added(self, suite: str, task_id: int, seed: int) -> tuple[str, ...]:
        """The kinds of objects that an environment must hold beyond the task's own; the same in all its initial states."""
        if self.kind != DISTRACTORS:
            return ()
        task = load_task(suite, task_id)
        rng = seeded_generator("shift", self.kind, suite, task_id, seed)
        return arrangement.distractors(self.level, task.description.read_text("utf-8"), task.instruction, rng)

    def noise(self, rng: np.random.Generator) -> int:
        """LIBERO-Plus's number of the noise before the main camera, 0 for none: severity 2, 4, ... 10 of a drawn kind."""
        return 10 * int(rng.integers(len(NOISES))) + 2 * self.level if self.kind == NOISE else 0
