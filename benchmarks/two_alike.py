"""Does pointing help? The tiny policy on scenes with two alike bowls, where only a prompt says which one is meant.

    python benchmarks/two_alike.py --out DIR [--episodes 400] [--mishaps none nudge] [--steps 1500 60 3500] [--seeds 0 1 2]
                                   [--model prompt_features=false]

Records the scenes, builds shards and trains the three stages from nothing for each seed, as tiny_models/policy.py does, and
compares held-out x and y errors before the gripper closes: with the right object's prompt, with none, with the wrong one's.
What DIR already holds is used again, so once the shards are there seeds may run beside each other, each as a command of its
own, and a last one prints the table. Settings of the policy may be changed, each choice in folders of its own. Needs the
extras [sim] and [train]; 400 episodes take about an hour of one core to record.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from evaluation.actions import evaluate
from pixel160k.files import read_json_object
from pixel160k.format.prompts import PIXEL_MASK, PROMPT_KINDS
from tiny_models.policy import EPISODES, MISHAPS, STEPS, prepare, run_stages

POINTING = (*PROMPT_KINDS, PIXEL_MASK)


def measure(shards: Path, run: Path, out: Path) -> dict[str, Any]:
    """The held-out errors of a run by condition, see `evaluation.actions.evaluate`; those of `out`, if it has them."""
    if not (out / "evaluation.json").exists():
        evaluate(run, shards, out, ("none", *POINTING, *(f"wrong_{kind}" for kind in POINTING)))
    return read_json_object(out / "evaluation.json")["conditions"]


def main() -> None:
    """Print one row per condition with the error of each seed, and how much lower pointing makes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", nargs="+", default=[], help="settings of the policy, key=value")
    parser.add_argument("--mishaps", nargs="+", default=MISHAPS, help="what goes wrong in the demonstrations, in turn")
    parser.add_argument("--steps", type=int, nargs=len(STEPS), default=STEPS.values(), help=f"of {', '.join(STEPS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = prepare(arguments.out, arguments.episodes, arguments.mishaps)
    results = []
    for seed in arguments.seeds:
        folder = arguments.out / "_".join([f"seed_{seed}", *arguments.model])
        run = run_stages(shards, folder, seed, arguments.model, dict(zip(STEPS, arguments.steps, strict=True)))
        results.append(measure(shards, run, folder / "evaluation"))
    before = [{name: one["before_close"] for name, one in result.items()} for result in results]
    table = Table("condition", *(f"seed {seed}: x, y before the close" for seed in arguments.seeds), "mean", "all, L1")
    for name in results[0]:
        told = ["{:.3f} [{:.3f}, {:.3f}]".format(one[name]["xy"], *one[name]["xy_95"]) for one in before]
        whole = statistics.mean(statistics.mean(result[name]["all"]["error"]) for result in results)
        table.add_row(name, *told, f"{statistics.mean(one[name]['xy'] for one in before):.3f}", f"{whole:.3f}")
    Console(width=200).print(table)
    for kind in POINTING:
        for other, words in (("none", "text only"), (f"wrong_{kind}", "the wrong bowl's")):
            saved = [1 - one[kind]["xy"] / one[other]["xy"] for one in before]
            apart = all(one[kind]["xy_95"][1] < one[other]["xy_95"][0] for one in before)
            shares = ", ".join(f"{share:.0%}" for share in saved)
            print(
                f"{kind}: lower than with {words} by {shares}; intervals {'' if apart else 'not '}apart in every seed"
            )


if __name__ == "__main__":
    main()
