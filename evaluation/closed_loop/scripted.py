"""Policies that know the simulator: the scripted demonstrator, and the replay of what was recorded.

Both know an episode's actions before it begins, so that they need no image. They live where its simulator does, not in the
process that holds a model.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annotate.sources.rlds import Columns
from evaluation.closed_loop.scenes import Scene
from pixel160k.errors import InputError
from pixel160k.tfrecord import read_records
from policies.base import Policy, Seen
from simulation.demonstration import attempt_until_solved
from simulation.environment import CLOSE, CONTROL_HZ, TaskEnvironment
from simulation.libero import SCRIPTED_TASKS
from simulation.rlds import find_dataset

Recorded = Mapping[tuple[int, int], np.ndarray]
"""LIBERO's commands, float32 (steps, 7), by task and initial state."""

_CHUNK = 8


@dataclass(frozen=True)
class Scripted:
    """What makes a policy where the simulator is; it can be sent to another process."""

    make: Callable[[TaskEnvironment], Policy]


class _Planned:
    """Gives out an episode's planned actions, chunk by chunk; behind their end the robot stands still."""

    blind = True

    def __init__(self) -> None:
        self._plan, self._next = np.zeros((0, 7), np.float32), 0

    def act(self, seen: Sequence[Seen]) -> np.ndarray:
        """The next chunk of the one episode that is planned, see `policies.base.Policy.act`."""
        (_,) = seen
        chunk = self._plan[self._next : self._next + _CHUNK]
        self._next += _CHUNK
        still = np.zeros((_CHUNK - len(chunk), 7), np.float32)
        still[:, -1] = self._plan[-1, -1] if len(self._plan) else 1
        return np.concatenate([chunk, still])[None]

    def _begin(self, commands: np.ndarray) -> None:
        """Plan LIBERO's commands, float32 (steps, 7)."""
        self._plan, self._next = commands.astype(np.float32), 0
        self._plan[:, -1] = commands[:, -1] != CLOSE


class Expert(_Planned):
    """The scripted demonstrator, which tries a scene in its own time until it is solved, then does that again."""

    def __init__(self, environment: TaskEnvironment) -> None:
        """Act in this environment, at its own 20 Hz.

        Raises:
            InputError: there is no script for the task.
        """
        super().__init__()
        suite, task = environment.suite, environment.task_id
        scripted = SCRIPTED_TASKS.get(suite, ())
        if task not in scripted:
            told = (
                f"of {suite} it can do {', '.join(map(str, sorted(scripted)))}"
                if scripted
                else f"it can do none of {suite}"
            )
            raise InputError(f"the scripted expert cannot do task {task}: {told}")
        self._environment = environment

    def reset(self, episode: str, instruction: str) -> None:
        """Plan the episode; its name ends in the initial state and the condition."""
        self._begin(np.stack(attempt_until_solved(self._environment, _initial_state(episode))[-1].actions))


class Replay(_Planned):
    """What was recorded in a scene, at 20 Hz, done again."""

    def __init__(self, recorded: Recorded, environment: TaskEnvironment) -> None:
        """`recorded`: as `recorded_commands` reads it; of `environment` only the task is asked."""
        super().__init__()
        self._task, self._recorded = environment.task_id, recorded

    def reset(self, episode: str, instruction: str) -> None:
        """Look for the episode. One that was not recorded is a KeyError: its scene is none of `recorded`."""
        self._begin(self._recorded[self._task, _initial_state(episode)])


def _initial_state(episode: str) -> int:
    """The initial state in the name of an episode."""
    state = re.search(r"_state_(\d+)_", episode)
    assert state is not None  # `episode_name` writes it
    return int(state[1])


def recorded_commands(recorded: Path, scenes: Sequence[Scene], suite: str) -> Recorded:
    """What was recorded in these scenes of a suite; no image is decoded.

    Args:
        recorded: output of `pixelcli sample --hz 20`.
        scenes: those that are wanted.
        suite: theirs.

    Raises:
        InputError: it holds no data set, one that is damaged or of another rate, none of these scenes, or one of them twice.
    """
    wanted = {f"{suite}/task_{scene.task_id:02d}/initial_state_{scene.initial_state:02d}": scene for scene in scenes}
    found: dict[tuple[int, int], np.ndarray] = {}
    for file in sorted(find_dataset(recorded).glob("*.tfrecord-*")):
        for record in read_records(file):
            place = f"{file} record {record.number}"
            if record.fault:
                raise InputError(f"{place}: {record.fault}; record the data set again")
            try:
                columns = Columns(record.payload)
                name, commands = columns.episode_text("episode_metadata/file_path"), columns.floats("steps/action", 7)
            except InputError as error:
                raise InputError(f"{place}: {error}; replay wants what pixelcli sample --hz 20 records") from None
            if np.abs(commands[:, :6]).max() > 1:
                raise InputError(
                    f"{recorded} is thinned; replay wants a recording of {CONTROL_HZ} Hz: pixelcli sample --hz 20"
                )
            if (scene := wanted.get(name)) is None:
                continue
            if (scene.task_id, scene.initial_state) in found:
                raise InputError(
                    f"{recorded} holds {name} twice, so that it does not say what is to be done again there"
                )
            found[scene.task_id, scene.initial_state] = commands
    if not found:
        raise InputError(f"{recorded} was recorded in none of these scenes")
    return found
