"""Train the tiny policy that ships, `policies/tiny`: it picks up that one of two alike bowls which it is shown.

    python -m tiny_models.policy --work build/policy

records the scenes (split by initial state), annotates them by motion, builds shards, trains the three stages from nothing by
the recipe tiny-two-alike, and writes the policy. What the folder already holds is used again. benchmarks/two_alike.py trains
its policies with the same steps.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from annotate.jobs import annotate as annotate_job
from annotate.jobs import shards as shards_job
from annotate.jobs.beam import Execution
from annotate.settings import AnnotateSettings
from simulation import truth
from simulation.mishaps import NO_MISHAP
from simulation.two_alike import record_two_alike
from tiny_models.export import replaced
from train import checkpoints
from train.run import train
from train.settings import load_recipe

EPISODES = 400  # each bowl in all scenes that there are, 320 of them for training
MISHAPS = (NO_MISHAP, "nudge")
STEPS = {"pretrain": 1500, "cat": 60, "pue": 3500}
RECIPE = "tiny-two-alike"
SHIPPED = Path("policies/tiny")


def prepare(out: Path, episodes: int = EPISODES, mishaps: Sequence[str] = MISHAPS) -> Path:
    """Record the scenes, annotate them and build shards, as far as it is not done yet; returns the folder of the shards."""
    recorded, annotations, shards = out / "recorded", out / "annotations", out / "shards"
    if (shards / "manifest.json").exists():  # written last; other seeds may be reading
        return shards
    if not (recorded / truth.FILE_NAME).exists():
        record_two_alike(episodes, 1, recorded, files=8, mishaps=mishaps)
    annotate_job.annotate("libero", recorded, annotations, AnnotateSettings(annotators="motion"), Execution())
    shards_job.build_shards(annotations, shards, Execution(), recorded, "accepted")
    return shards


def run_stages(shards: Path, out: Path, seed: int, model: Sequence[str] = (), steps: Mapping[str, int] = STEPS) -> Path:
    """Train the three stages of a policy, as far as it is not done yet; returns the last run's folder.

    Args:
        shards: of `prepare`.
        out: where each stage has a folder.
        seed: of the training.
        model: settings of the policy to change, beside those of the recipe.
        steps: optimizer steps of each stage.
    """
    settings, init = load_recipe(RECIPE).model, "tiny"
    for stage, count in steps.items():
        run = out / stage
        last = checkpoints.latest(run)
        if last is None or last.name != f"checkpoint-{count}":
            values: dict[str, Any] = {"stage": stage, "init": init, "seed": seed, "max_steps": count}
            values["model"] = [*settings, *model]
            train(load_recipe(RECIPE, values=values), [str(shards)], run, resume=last is not None)
        init = str(run)
    return run


def ship(run: Path, out: Path) -> None:
    """Write the merged policy of a run, in fp16, in the place of the shipped one; only a README.md in `out` stays."""
    with replaced(out) as folder:
        checkpoints.load_policy(run).half().save_pretrained(folder)


def main() -> None:
    """Record, train and write the policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the recording and the runs (1 GB)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = prepare(arguments.work)
    ship(run_stages(shards, arguments.work / f"seed_{arguments.seed}", arguments.seed), arguments.out)


if __name__ == "__main__":
    main()
