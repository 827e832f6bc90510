"""Does pointing help? The tiny policy on scenes with two alike bowls, where only a prompt says which one is meant.

    python benchmarks/two_alike.py --out DIR [--episodes 200] [--seeds 0 1 2] [--model prompt_features=false]

Records the scenes (split by initial state), annotates them by motion, builds shards, trains the three stages from nothing
for each seed, and compares held-out x and y errors before the gripper closes: with the right object's prompt, with none,
with the wrong one's. What DIR already holds is used again, so once the shards are there seeds may run beside each other, each
as a command of its own, and a last one prints the table. Settings of the policy may be changed, each choice in folders of its
own. Needs the extras [sim] and [train]; on two idle cores about 30 minutes to record.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from annotate.jobs import annotate as annotate_job
from annotate.jobs import shards as shards_job
from annotate.jobs.beam import Execution
from annotate.settings import AnnotateSettings
from evaluation.actions import evaluate
from pixel160k.files import read_json_object
from pixel160k.format.prompts import PIXEL_MASK, PROMPT_KINDS
from simulation import truth
from simulation.two_alike import record_two_alike
from train import checkpoints
from train.run import train
from train.settings import load_recipe

POINTING = (*PROMPT_KINDS, PIXEL_MASK)
STEPS = {"pretrain": 1200, "cat": 60, "pue": 2400}
SETTINGS = (
    "held_out_share=0", "report_to=[]", "learning_rate=1e-3", "warmup_steps=100", "save_every=200", "evaluate_every=400",
    "evaluate_batches=8", "keep=1",
)  # fmt: skip


def prepare(out: Path, episodes: int) -> Path:
    """Record the scenes, annotate them and build shards, as far as it is not done yet; returns the folder of the shards."""
    recorded, annotations, shards = out / "recorded", out / "annotations", out / "shards"
    if (shards / "manifest.json").exists():  # written last; other seeds may be reading
        return shards
    if not (recorded / truth.FILE_NAME).exists():
        record_two_alike(episodes, 1, recorded, files=8)
    annotate_job.annotate("libero", recorded, annotations, AnnotateSettings(annotators="motion"), Execution())
    shards_job.build_shards(annotations, shards, Execution(), recorded, "accepted")
    return shards


def run_stages(shards: Path, out: Path, seed: int, model: list[str], pue: int) -> Path:
    """Train the three stages of a policy with these settings, as far as it is not done yet; returns the last run's folder."""
    init = "tiny"
    for stage, steps in {**STEPS, "pue": pue}.items():
        run = out / stage
        last = checkpoints.latest(run)
        if last is None or last.name != f"checkpoint-{steps}":
            values: dict[str, Any] = {"stage": stage, "init": init, "seed": seed, "max_steps": steps, "model": model}
            train(load_recipe("tiny-sample", SETTINGS, values), [str(shards)], run, resume=last is not None)
        init = str(run)
    return run


def measure(shards: Path, run: Path, out: Path) -> dict[str, Any]:
    """The held-out errors of a run by condition, see `evaluation.actions.evaluate`; those of `out`, if it has them."""
    if not (out / "evaluation.json").exists():
        evaluate(run, shards, out, ("none", *POINTING, *(f"wrong_{kind}" for kind in POINTING)))
    return read_json_object(out / "evaluation.json")["conditions"]


def main() -> None:
    """Print one row per condition with the error of each seed, and how much lower pointing makes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", nargs="+", default=[], help="settings of the policy, key=value")
    parser.add_argument("--pue", type=int, default=STEPS["pue"], help="optimizer steps of pue, for another --out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = prepare(arguments.out, arguments.episodes)
    results = []
    for seed in arguments.seeds:
        folder = arguments.out / "_".join([f"seed_{seed}", *arguments.model])
        run = run_stages(shards, folder, seed, arguments.model, arguments.pue)
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
