"""How fast LIBERO is evaluated, beside the loop of OpenVLA's script, with the same policy: one that takes no time.

    python benchmarks/closed_loop_speed.py [--episodes 12] [--steps 60] [--workers 2]

Both try the same initial states of a task of libero_spatial for as many control steps, in one run, with the policy asked at every
step. OpenVLA's loop is LIBERO's own wrapper as `run_libero_eval.py` uses it: one process, both cameras drawn at every step, the
model made anew for each episode. The time counts from the command to the last row, processes and environments included. Needs
the extras [sim] and [train].
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from evaluation.closed_loop.episode import commands, jpeg_round_trip
from evaluation.closed_loop.run import evaluate
from evaluation.closed_loop.settings import LiberoSettings
from policies.base import Seen
from policies.openvla import as_openvla_sees
from policies.simple import RandomPolicy
from simulation.environment import STAND_STILL
from simulation.libero import import_libero, load_task

SUITE, TASK = "libero_spatial", 0


def openvlas_loop(episodes: int, steps: int) -> float:
    """Seconds that OpenVLA's loop takes."""
    begin = time.perf_counter()
    import_libero()
    from libero.libero.envs import OffScreenRenderEnv

    task, policy = load_task(SUITE, TASK), RandomPolicy(chunk=1)
    environment = OffScreenRenderEnv(bddl_file_name=str(task.description), camera_heights=256, camera_widths=256)
    environment.seed(0)
    for episode in range(episodes):
        environment.reset()
        seen = environment.set_init_state(task.initial_states[episode])
        for _ in range(10):
            seen, *_ = environment.step(STAND_STILL.tolist())
        for _ in range(steps):
            image = as_openvla_sees(jpeg_round_trip(np.ascontiguousarray(seen["agentview_image"][::-1, ::-1]), 95), 224)
            (action,) = policy.act([Seen(image, task.instruction, episode=str(episode))])[0]
            seen, _, done, _ = environment.step(commands(action, 1)[0].tolist())
            if done:
                break
    environment.close()
    return time.perf_counter() - begin


def ours(episodes: int, steps: int, workers: int, replan: int) -> float:
    """Seconds that `pixelcli evaluate libero` takes."""
    begin = time.perf_counter()
    values = {"suite": SUITE, "tasks": [TASK], "episodes": episodes, "most_steps": steps, "replan": replan}
    with tempfile.TemporaryDirectory() as folder:
        evaluate("random", LiberoSettings.load(values=values), Path(folder), workers)
    return time.perf_counter() - begin


def main() -> None:
    """Print seconds, seconds an episode, and how many times faster than OpenVLA's loop each is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    episodes, steps = arguments.episodes, arguments.steps
    theirs = openvlas_loop(episodes, steps)
    rows = {"OpenVLA's loop": theirs}
    for workers, replan in ((1, 1), (arguments.workers, 1), (arguments.workers, 8)):
        rows[f"evaluate libero, {workers} workers, asked every {replan}"] = ours(episodes, steps, workers, replan)
    table = Table("", "seconds", "an episode", "times as fast")
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.1f}", f"{seconds / episodes:.2f}", f"{theirs / seconds:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
