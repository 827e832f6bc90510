"""An evaluation in LIBERO with a simulator that costs nothing, as a program of its own, so that processes can be killed.

    python tests/no_simulator.py OUT SETTINGS WORKERS

Simulators' processes import this file, too, and with it what stands in for LIBERO. Its outcome depends on all that LIBERO's
depends on: task, initial state, every action, and on the resets before where fixtures wander. SETTINGS is JSON. The
variables DIES and BREAKS name initial states in which the simulator dies, or meets a bug; with BROKEN none starts; with LOOKS the
policy looks at images, which there are not without.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from evaluation.closed_loop import scenes, workers
from policies.simple import RandomPolicy
from simulation.goals import Subtask
from simulation.libero import Task


class NoSimulator:
    """What of `simulation.environment.TaskEnvironment` an episode needs: one number, moved by all actions."""

    instruction, target = "move it", "it"
    subtasks, touchable = (Subtask(("in", "it", "there"), "it", "there"),), ("it", "another")

    def __init__(self, suite, task_id, target="", reflections=False, hard_reset=False, added=()):
        self.suite, self.task_id, self._resets = suite, task_id, 0
        if "BROKEN" in os.environ:
            raise RuntimeError("cannot initialise EGL")
        tempfile.mkdtemp()  # what a simulator that is killed leaves

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def reset(self, initial_state, seeded=True):
        if str(initial_state) == os.environ.get("DIES"):
            os._exit(9)
        if str(initial_state) == os.environ.get("BREAKS"):
            raise ZeroDivisionError("a bug of ours")
        self._resets = 0 if seeded else self._resets + 1
        self._value = np.sin(100 * self.task_id + initial_state + self._resets / 7)

    def step(self, action):
        time.sleep(0.001)
        self._value = 0.9 * self._value + 0.3 * float(action[:6].sum())

    def render(self, camera):
        assert "LOOKS" in os.environ
        return np.zeros((8, 8, 3), np.uint8)

    def proprioception(self):
        return np.full(8, self._value, np.float32), np.zeros(7, np.float32)

    def touched_object(self):
        return "it" if self._value > 1 else "another" if self._value < -1 else None

    def succeeded(self):
        return bool(self._value > 1.5)


workers.TaskEnvironment = NoSimulator
scenes.load_task = lambda suite, task: Task("move it", np.zeros((50, 1)), Path())
scenes.suite_tasks = lambda suite: 10
RandomPolicy.blind = "LOOKS" not in os.environ

if __name__ == "__main__":
    from evaluation.closed_loop.run import evaluate
    from evaluation.closed_loop.settings import LiberoSettings
    from pixel160k.errors import InputError

    out, values, processes = sys.argv[1:]
    try:
        evaluate("random", LiberoSettings.load(values=json.loads(values)), Path(out), int(processes))
    except InputError as error:
        sys.exit(str(error))
