"""Does pointing help? The tiny policy on scenes with two alike bowls, where only a prompt says which one is meant.

    python benchmarks/two_alike.py --out DIR [--episodes 200] [--seeds 0 1 2]

Records the scenes (split by initial state), annotates them by motion, builds shards, trains the three stages from nothing
for each seed, and compares held-out x and y errors before the gripper closes: with the right object's prompt, with none,
with the wrong one's. What DIR already holds is used again, so once the shards are there seeds may run beside each other, each
as a command of its own, and a last one prints the table. Needs the extras [sim] and [train]; on two idle cores about 30
minutes to record, and under 50 for each of two seeds beside each other.
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
from simulation import truth
from simulation.two_alike import record_two_alike
from train import checkpoints
from train.run import train
from train.settings import load_recipe

PROMPTS = ("none", "point", "mask", "pixel_mask", "wrong_point", "wrong_mask", "wrong_pixel_mask")
STEPS = {"pretrain": 1200, "cat": 60, "pue": 3600}
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


def run_stages(shards: Path, out: Path, seed: int) -> Path:
    """Train the three stages, as far as it is not done yet; returns the folder of the last run."""
    init = "tiny"
    for stage, steps in STEPS.items():
        run = out / stage
        last = checkpoints.latest(run)
        if last is None or last.name != f"checkpoint-{steps}":
            changes = (f"stage={stage}", f"init={init}", f"seed={seed}", f"max_steps={steps}")
            train(load_recipe("tiny-sample", (*SETTINGS, *changes)), [str(shards)], run, resume=last is not None)
        init = str(run)
    return run


def measure(shards: Path, run: Path, out: Path) -> dict[str, Any]:
    """The held-out errors of a run, see `evaluation.actions.evaluate`."""
    return evaluate(run, shards, out, PROMPTS)


def main() -> None:
    """Print one row per condition with the error of each seed, and how much lower pointing makes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = prepare(arguments.out, arguments.episodes)
    results = []
    for seed in arguments.seeds:
        folder = arguments.out / f"seed_{seed}"
        results.append(measure(shards, run_stages(shards, folder, seed), folder / "evaluation")["conditions"])
    before = [{name: one["before_close"] for name, one in result.items()} for result in results]
    table = Table("condition", *(f"seed {seed}: x, y before the close" for seed in arguments.seeds), "mean", "all, L1")
    for name in results[0]:
        told = ["{:.3f} [{:.3f}, {:.3f}]".format(one[name]["xy"], *one[name]["xy_95"]) for one in before]
        whole = statistics.mean(statistics.mean(result[name]["all"]["error"]) for result in results)
        table.add_row(name, *told, f"{statistics.mean(one[name]['xy'] for one in before):.3f}", f"{whole:.3f}")
    Console(width=200).print(table)
    for kind in ("point", "mask", "pixel_mask"):
        for other, words in (("none", "text only"), (f"wrong_{kind}", "the wrong bowl's")):
            saved = [1 - one[kind]["xy"] / one[other]["xy"] for one in before]
            print(
                f"{kind}: {statistics.mean(saved):.0%} lower than with {words}, seeds from {min(saved):.0%} to {max(saved):.0%}"
            )


if __name__ == "__main__":
    main()
