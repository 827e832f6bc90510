"""Does a click lead the hand? Trained policies act in held-out two-alike scenes until a finger first touches something.

    python benchmarks/first_touch.py DIR/seed_0/pue DIR/seed_1/pue DIR/seed_2/pue

DIR is that of benchmarks/two_alike.py, whose policies never saw these initial states. In each of 40 scenes one of the two
bowls is meant, told by the text alone (which fits both), by a click on it, or by its mask p_t, as the simulator sees it. The
policy is asked anew every four actions. What points at the bowl is given until the policy closes the gripper, as in training.
Counted is how often the first object that a finger touches is the bowl that is meant. Needs the extras [sim] and [train].
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from evaluation.closed_loop.episode import commands
from model.policy import PixelVLA
from pixel160k.format.prompts import PIXEL_MASK, point, sample_prompts
from pixel160k.seeding import seeded_generator
from simulation.environment import AGENT_VIEW, CONTROL_HZ, TaskEnvironment
from simulation.two_alike import INITIAL_STATES, INSTRUCTION, SUITE, TARGETS, TASKS
from train.checkpoints import load_policy

CONDITIONS = ("none", "point", PIXEL_MASK)
REPLAN = 4  # actions of a chunk that are carried out
ACTIONS = 48  # of 5 Hz, at most; the demonstrator touches its bowl after some 12
WINDOW = CONTROL_HZ // 5  # control steps of an action


def first_touch(policy: PixelVLA, environment: TaskEnvironment, initial_state: int, meant: str, condition: str) -> str:
    """The name of what a finger touches first, "nothing" if the policy's time runs out."""
    environment.reset(initial_state)
    (dataset,) = policy.processor.statistics
    mask = environment.instance_masks(AGENT_VIEW)[meant]
    drawn = sample_prompts(mask, 1, seeded_generator("click", environment.task_id, initial_state))
    prompts = [point(*drawn.points[0])] if condition == "point" else []
    closed = False
    for _ in range(0, ACTIONS, REPLAN):
        shown = [environment.instance_masks(AGENT_VIEW)[meant]] if condition == PIXEL_MASK and not closed else []
        actions = policy.predict_action(
            environment.render(AGENT_VIEW),
            INSTRUCTION,
            shown,
            [] if closed else prompts,
            dataset,
            environment.proprioception()[0],
        )
        for action in actions[:REPLAN]:
            closed |= bool(action[6] < 0.5)
            for command in commands(action, WINDOW):
                environment.step(command)
                if touched := environment.touched_object():
                    return touched
    return "nothing"


def scenes() -> list[tuple[int, int, str]]:
    """Task, initial state and the bowl that is meant; each bowl in half of the scenes."""
    chosen = [(task, state) for task in TASKS for state in INITIAL_STATES["val"]]
    order = seeded_generator("first touch").permutation(len(chosen))
    return sorted((*chosen[scene], TARGETS[place % 2]) for place, scene in enumerate(order))


def main() -> None:
    """Print one row per policy: in how many scenes the bowl that is meant, the other, or something else was touched first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs or checkpoints")
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    policies = {run: load_policy(run) for run in runs}
    found: dict[Path, dict[str, Counter[str]]] = {run: {name: Counter() for name in CONDITIONS} for run in runs}
    for task in TASKS:
        with TaskEnvironment(SUITE, task) as environment:
            for state, meant in [scene[1:] for scene in scenes() if scene[0] == task]:
                for run, policy in policies.items():
                    for condition in CONDITIONS:
                        touched = first_touch(policy, environment, state, meant, condition)
                        what = "meant" if touched == meant else "other bowl" if touched in TARGETS else "neither"
                        found[run][condition][what] += 1
        print(
            {str(run): {name: dict(counts) for name, counts in one.items()} for run, one in found.items()}, flush=True
        )
    table = Table("policy", *(f"{condition}: meant, other bowl, neither" for condition in CONDITIONS))
    for run, counted in found.items():
        told = (", ".join(str(one[what]) for what in ("meant", "other bowl", "neither")) for one in counted.values())
        table.add_row(str(run), *told)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
