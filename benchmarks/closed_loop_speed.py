"""How fast LIBERO is evaluated, beside the loop of OpenVLA's script, with the same policy: one that looks and takes no time.

    python benchmarks/closed_loop_speed.py [--episodes 4] [--steps 60] [--workers 2] [--rounds 2]

All ways try the same initial states of a task of libero_spatial for as many control steps, in turn, round by round. OpenVLA's
loop is LIBERO's own wrapper as `run_libero_eval.py` uses it: one process, the policy asked at every step, both cameras drawn at
every step, the model made anew for each episode. Time counts from the command to the last row, processes and environments
included; processor time is that of all processes together, which what else runs on the machine changes less. The second table is of
one episode where everything stands already, as it does in all but the first of hundreds. Needs the extras [sim] and [train].
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from evaluation.closed_loop.episode import commands, jpeg_round_trip, run_episode
from evaluation.closed_loop.run import evaluate
from evaluation.closed_loop.scenes import scenes_of
from evaluation.closed_loop.settings import LiberoSettings
from policies.base import Seen
from policies.openvla import as_openvla_sees
from policies.simple import RandomPolicy
from simulation.environment import STAND_STILL, TaskEnvironment
from simulation.libero import import_libero, load_task

SUITE, TASK = "libero_spatial", 0


def openvlas_loop(episodes: int, steps: int) -> Iterator[None]:
    """Try the episodes as OpenVLA's script does, one at a time."""
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
        yield
    environment.close()


def openvlas_whole(episodes: int, steps: int) -> None:
    """Try all of them."""
    for _ in openvlas_loop(episodes, steps):
        pass


def our_settings(episodes: int, steps: int, values: dict[str, Any]) -> LiberoSettings:
    """The same episodes for `pixelcli evaluate libero`; its random policy looks at images from now on, as others do."""
    RandomPolicy.blind = False
    values = {"suite": SUITE, "tasks": [TASK], "episodes": episodes, "most_steps": steps, **values}
    return LiberoSettings.load(values=values)


def ours(episodes: int, steps: int, workers: int, values: dict[str, Any]) -> None:
    """Try them as `pixelcli evaluate libero` does, with further settings."""
    settings = our_settings(episodes, steps, values)
    with tempfile.TemporaryDirectory() as folder:
        evaluate("random", settings, Path(folder), workers)


def our_loop(episodes: int, steps: int, values: dict[str, Any]) -> Iterator[None]:
    """Try them as one of its processes does, one at a time."""
    settings = our_settings(episodes, steps, values)
    with TaskEnvironment(SUITE, TASK, reflections=settings.reflections) as environment:
        for scene in scenes_of(settings):
            run_episode(environment, RandomPolicy(), settings, scene, "none")
            yield


def last_episode(loop: Any) -> float:
    """Seconds of the processor that the last episode of a loop takes."""
    seconds = 0.0
    episodes, begin = loop(), time.process_time()
    for _ in episodes:
        seconds, begin = time.process_time() - begin, time.process_time()
    return seconds


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


def print_whole(episodes: int, steps: int, workers: int, rounds: int) -> None:
    """Measure whole evaluations, and print how many times as fast as OpenVLA's loop each way is."""
    of = (episodes, steps)
    many = f"{workers} processes"
    ways = {
        "OpenVLA's loop": partial(openvlas_whole, *of),
        "1 process, asked at every step": partial(ours, *of, 1, {"replan": 1}),
        f"{many}, asked at every step": partial(ours, *of, workers, {"replan": 1}),
        f"{many}, every step, no reflections": partial(ours, *of, workers, {"replan": 1, "reflections": False}),
        f"{many}, every 8 steps": partial(ours, *of, workers, {"replan": 8}),
    }
    total = dict.fromkeys(ways, np.zeros(2))
    for number in range(rounds):
        for name, way in ways.items():
            total[name] = total[name] + (seconds := measured(way))
            print(f"round {number}, load {os.getloadavg()[0]:.1f}: {name}: {seconds.round(1)}", flush=True)
    table = Table("", "seconds an episode", "times as fast", "of the processor", "times as few")
    theirs = total["OpenVLA's loop"]
    for name, seconds in total.items():
        wall, processor = seconds / (episodes * rounds)
        faster, fewer = theirs / seconds
        table.add_row(name, f"{wall:.2f}", f"{faster:.1f}", f"{processor:.2f}", f"{fewer:.1f}")
    Console(width=120).print(table)


def print_one(steps: int) -> None:
    """Measure one episode where everything stands already, and print how many times fewer seconds each way takes."""
    loops = {"OpenVLA's loop": partial(openvlas_loop, 2, steps)}
    for name, values in (
        ("asked at every step", {"replan": 1}),
        ("every step, no reflections", {"replan": 1, "reflections": False}),
        ("every 8 steps", {"replan": 8}),
    ):
        loops[name] = partial(our_loop, 2, steps, values)
    table = Table(f"the second episode, {steps} steps", "of the processor", "times as few")
    one = dict[str, float]()
    for name, loop in loops.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            one[name] = pool.submit(last_episode, loop).result()
        table.add_row(name, f"{one[name]:.2f}", f"{next(iter(one.values())) / one[name]:.1f}")
    Console(width=120).print(table)


def main() -> None:
    """Print both tables; without rounds only the second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.rounds:
        print_whole(arguments.episodes, arguments.steps, arguments.workers, arguments.rounds)
    print_one(arguments.steps)


if __name__ == "__main__":
    main()
