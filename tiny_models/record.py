"""Record the simulated demonstrations that the tiny checkpoints learn from; no two splits share a scene.

`python -m tiny_models.record --out DIR` records `DIR/train/<suite>` and `DIR/monitor/<suite>`. Only this file says which
scenes belong to which split: training uses no task of HELD_OUT_TASKS and no initial state from 25 on.
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulation.libero import PICK_AND_PLACE_TASKS
from simulation.recording import record_sample

HELD_OUT_TASKS = {"libero_object": (9,), "libero_spatial": (3,), "libero_goal": (2,)}
TASKS = {
    suite: tuple(task for task in tasks if task not in HELD_OUT_TASKS[suite])
    for suite, tasks in PICK_AND_PLACE_TASKS.items()
}
HANDLES = (0, 7)  # of libero_goal: the drawer and the stove. Here the hand is tilted, as in no other task.
TRAINING_STATES, MONITORING_STATES, EVALUATION_STATES = range(25), range(25, 30), range(30, 50)


@dataclass(frozen=True)
class RecordingPart:
    """One data set to record: demonstrations of one suite for one split."""

    folder: str
    suite: str
    tasks: Sequence[int]
    initial_states: range
    episodes: int
    seed: int
    name: str = ""  # of its folder; the suite's if empty


# In an order that keeps two processes busy for the same time.
TRAINING_PARTS = (
    RecordingPart("train", "libero_object", TASKS["libero_object"], TRAINING_STATES, 45, seed=0),
    RecordingPart("train", "libero_spatial", TASKS["libero_spatial"], TRAINING_STATES, 32, seed=0),
    RecordingPart("train", "libero_goal", TASKS["libero_goal"], TRAINING_STATES, 24, seed=0),
    RecordingPart("train", "libero_goal", HANDLES, TRAINING_STATES, 36, seed=2, name="handles"),
    RecordingPart("monitor", "libero_object", TASKS["libero_object"], MONITORING_STATES, 9, seed=1),
    RecordingPart("monitor", "libero_goal", TASKS["libero_goal"], MONITORING_STATES, 8, seed=1),
    RecordingPart("monitor", "libero_spatial", TASKS["libero_spatial"], MONITORING_STATES, 8, seed=1),
    RecordingPart("monitor", "libero_goal", HANDLES, MONITORING_STATES, 10, seed=2, name="handles"),
)
EVALUATION_PARTS = (
    RecordingPart("seen_tasks", "libero_object", TASKS["libero_object"], EVALUATION_STATES, 36, seed=3),
    RecordingPart("seen_tasks", "libero_spatial", TASKS["libero_spatial"], EVALUATION_STATES, 32, seed=3),
    RecordingPart("seen_tasks", "libero_goal", TASKS["libero_goal"], EVALUATION_STATES, 32, seed=3),
    RecordingPart("unseen_tasks", "libero_object", HELD_OUT_TASKS["libero_object"], EVALUATION_STATES, 8, seed=3),
    RecordingPart("unseen_tasks", "libero_spatial", HELD_OUT_TASKS["libero_spatial"], EVALUATION_STATES, 8, seed=3),
    RecordingPart("unseen_tasks", "libero_goal", HELD_OUT_TASKS["libero_goal"], EVALUATION_STATES, 8, seed=3),
    # Things that are not carried away; all of these scenes are recorded.
    RecordingPart("handles", "libero_goal", HANDLES, EVALUATION_STATES, 40, seed=3),
)


def record_part(part: RecordingPart, out: Path) -> str:
    """Record one data set into `<out>/<folder>/<name>` unless it exists; returns a line that says what was done."""
    folder = out / part.folder / (part.name or part.suite)
    if folder.exists():
        return f"{folder} exists already"
    summary = record_sample(
        part.suite,
        part.episodes,
        part.seed,
        folder,
        tasks={part.suite: part.tasks},
        initial_states=part.initial_states,
    )
    counts = summary.total()
    return f"{folder}: {counts.recorded} episodes, {counts.failed_episodes} scenes failed"


def main() -> None:
    """Record the training and monitoring sets, or the evaluation sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--evaluation", action="store_true", help="record the evaluation sets instead (states 30-49)")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    parts = EVALUATION_PARTS if arguments.evaluation else TRAINING_PARTS
    with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=1) as pool:
        for line in pool.starmap(record_part, [(part, arguments.out) for part in parts], chunksize=1):
            print(line, flush=True)


if __name__ == "__main__":
    main()
