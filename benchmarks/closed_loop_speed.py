"""How fast LIBERO is evaluated, beside the loop of OpenVLA's script, with the same policy: one that looks and takes no time.

    python benchmarks/closed_loop_speed.py [--episodes 4] [--steps 60] [--workers 2] [--rounds 2]

All ways try the same initial states of a task of libero_spatial for as many control steps, in turn, round by round. OpenVLA's
loop is LIBERO's own wrapper as `run_libero_eval.py` uses it: one process, the policy asked at every step, both cameras drawn at
every step, the model made anew for each episode. Time counts from the command to the last row, processes and environments
included; processor time is that of all processes together, which what else runs on the machine changes less. Needs the
extras [sim] and [train].
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

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


def openvlas_loop(episodes: int, steps: int) -> None:
    """Try the episodes as OpenVLA's script does."""
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


def ours(episodes: int, steps: int, workers: int, values: dict[str, Any]) -> None:
    """Try them as `pixelcli evaluate libero` does, with further settings."""
    RandomPolicy.blind = False  # so that it is shown images, as a policy that looks
    values = {"suite": SUITE, "tasks": [TASK], "episodes": episodes, "most_steps": steps, **values}
    with tempfile.TemporaryDirectory() as folder:
        evaluate("random", LiberoSettings.load(values=values), Path(folder), workers)


def measured(way: Any) -> np.ndarray:
    """Seconds, and seconds of the processor, that a way takes in a process of its own."""

    def processor() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, begin = processor(), time.perf_counter()
    process = multiprocessing.get_context("spawn").Process(target=way)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)
    return np.array([time.perf_counter() - begin, processor() - before])


def main() -> None:
    """Print seconds an episode, and how many times faster than OpenVLA's loop each way is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    of = (arguments.episodes, arguments.steps)
    many = f"{arguments.workers} processes"
    ways = {
        "OpenVLA's loop": partial(openvlas_loop, *of),
        "1 process, asked at every step": partial(ours, *of, 1, {"replan": 1}),
        f"{many}, asked at every step": partial(ours, *of, arguments.workers, {"replan": 1}),
        f"{many}, every step, no reflections": partial(
            ours, *of, arguments.workers, {"replan": 1, "reflections": False}
        ),
        f"{many}, every 8 steps": partial(ours, *of, arguments.workers, {"replan": 8}),
    }
    total = dict.fromkeys(ways, np.zeros(2))
    for number in range(arguments.rounds):
        for name, way in ways.items():
            total[name] = total[name] + (seconds := measured(way))
            print(f"round {number}, load {os.getloadavg()[0]:.1f}: {name}: {seconds.round(1)}", flush=True)
    table = Table("", "seconds an episode", "times as fast", "of the processor", "times as few")
    theirs = total["OpenVLA's loop"]
    for name, seconds in total.items():
        wall, processor = seconds / (arguments.episodes * arguments.rounds)
        faster, fewer = theirs / seconds
        table.add_row(name, f"{wall:.2f}", f"{faster:.1f}", f"{processor:.2f}", f"{fewer:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
