"""Policies that know the simulator: the scripted demonstrator, and the replay of what was recorded.

Both know an episode's actions before it begins. They live where its simulator does, not in the process that holds a model.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixel160k.errors import InputError
from policies.base import Seen
from simulation.demonstration import attempt_until_solved
from simulation.environment import CLOSE, CONTROL_HZ, TaskEnvironment
from simulation.libero import HANDLE_TASKS, PICK_AND_PLACE_TASKS
from simulation.rlds import find_dataset, read_libero_episodes

_CHUNK = 8


class _Planned:
    """Gives out an episode's planned actions, chunk by chunk; behind their end the robot stands still."""

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
        scripted = {*PICK_AND_PLACE_TASKS.get(suite, ()), *HANDLE_TASKS.get(suite, ())}
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

    def __init__(self, recorded: Path, environment: TaskEnvironment) -> None:
        """`recorded`: output of `pixelcli sample --hz 20`; of `environment` only the task is asked.

        Raises:
            InputError: it holds no data set, or one of another rate.
        """
        super().__init__()
        self._environment, self._commands = environment, _recorded_commands(recorded)

    def reset(self, episode: str, instruction: str) -> None:
        """Look for the episode.

        Raises:
            InputError: none was recorded in this scene.
        """
        state = _initial_state(episode)
        scene = f"{self._environment.suite}/task_{self._environment.task_id:02d}/initial_state_{state:02d}"
        if scene not in self._commands:
            raise InputError(f"nothing is recorded of {scene}; there is {', '.join(sorted(self._commands))}")
        self._begin(self._commands[scene])


def _initial_state(episode: str) -> int:
    """The initial state in the name of an episode."""
    state = re.search(r"_state_(\d+)_", episode)
    assert state is not None  # `episode_name` writes it
    return int(state[1])


def recorded_scenes(recorded: Path, suite: str) -> set[tuple[int, int]]:
    """The task and initial state of each episode of a suite that a recording has.

    Raises:
        InputError: as `Replay`.
    """
    found = (re.fullmatch(rf"{suite}/task_(\d+)/initial_state_(\d+)", scene) for scene in _recorded_commands(recorded))
    return {(int(scene[1]), int(scene[2])) for scene in found if scene}


def _recorded_commands(recorded: Path) -> dict[str, np.ndarray]:
    """LIBERO's commands, float32 (steps, 7), of each scene of a data set of 20 Hz."""
    dataset = find_dataset(recorded)
    found = {}
    for file in sorted(dataset.glob("*.tfrecord-*")):
        for episode in read_libero_episodes(file):
            commands = np.stack([step["action"] for step in episode["steps"]])
            if np.abs(commands[:, :6]).max() > 1:
                raise InputError(
                    f"{recorded} is thinned; replay wants a recording of {CONTROL_HZ} Hz: pixelcli sample --hz 20"
                )
            scene = episode["episode_metadata"]["file_path"]
            found[scene.decode() if isinstance(scene, bytes) else scene] = commands
    return found
