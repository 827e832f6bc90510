"""One training run from recipe and shards to checkpoints: `pixelcli train`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.policy import PixelVLA
from model.settings import PRESETS
from pixel160k.errors import InputError, one_line
from pixel160k.packages import is_installed
from train import checkpoints, stages
from train.settings import TrainSettings, check_resumable
from train.stream import HeldOut, check_held_out, open_stream, statistics_of
from train.trainer import PolicyTrainer


def train(settings: TrainSettings, shards: Sequence[str], out: Path, resume: bool = False) -> Path:
    """Train a policy, and return the folder of the last checkpoint.

    Args:
        settings: the recipe.
        shards: one or more shard directories, each a data set; every sample of them comes equally often.
        out: where checkpoints go; each holds all that a resumed run or a later stage needs.
        resume: go on from the last checkpoint in `out`, with the recipe of that checkpoint (`check_resumable`).

    Raises:
        InputError: recipe, start, shards or `out` are not right, which is said before anything is trained; or the loss
            was not finite.
    """
    if settings.fsdp and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise InputError(
            "fsdp spreads a policy over several processes, one per GPU: start them with torchrun --nproc-per-node N "
            "--no-python pixelcli train ..., or leave it out, --set fsdp=false"
        )
    for package in settings.report_to:
        if not is_installed(package):  # W&B leaves a folder "wandb" where a run was started, which is no package
            raise InputError(f"{package} of report_to is not installed: pip install {package}, or --set report_to=[]")
    last = checkpoints.latest(out)
    if resume and last is None:
        raise InputError(f"{out} holds no checkpoint to resume from; start without --resume")
    if not resume and last is not None:
        raise InputError(f"{out} holds checkpoints of an earlier run; go on with --resume or choose another --out")
    if last:
        begun_with = checkpoints.recipe_of(last)
        if begun_with is None:
            raise InputError(f"{last} holds no recipe.yaml: pixelcli train did not write it")
        check_resumable(settings, begun_with, last)
    statistics = statistics_of(shards)
    check_held_out(settings, shards)
    torch.manual_seed(settings.seed)
    policy, base = build(settings, statistics, last)
    stream = open_stream(policy.processor, settings, shards)
    trainer = PolicyTrainer(policy, settings, base, stream, HeldOut(policy.processor, settings, shards), out)
    if trainer.is_world_process_zero():
        print(stages.describe(policy), flush=True)
        if "wandb" in settings.report_to:
            _open_wandb(settings, out)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.is_world_process_zero():
        print(trainer.account.summary(), flush=True)
    trainer.accelerator.wait_for_everyone()  # the last checkpoint has its name
    # The process group and its threads end with the trainer: where one of gloo's still held a tensor as Python went away,
    # torch aborted the process of a run that had succeeded (pytorch issue 190489).
    trainer.accelerator.end_training()
    finished = checkpoints.latest(out)
    assert finished is not None
    return finished


def _open_wandb(settings: TrainSettings, out: Path) -> None:
    """Begin the W&B run that transformers then logs to, with the whole recipe; its files lie beside the checkpoints.

    Raises:
        InputError: W&B refuses, as where nobody is logged in.
    """
    import wandb

    out.mkdir(parents=True, exist_ok=True)
    project = os.environ.get("WANDB_PROJECT", "pixelvla")
    try:
        wandb.init(project=project, name=out.name, dir=out, config={"recipe": settings.model_dump(mode="json")})
    except wandb.Error as error:
        raise InputError(
            f"W&B cannot be reported to: {one_line(error)} Or set WANDB_MODE=offline, or --set report_to=[]"
        ) from None


def build(settings: TrainSettings, statistics: dict[str, Any], resumed: Path | None) -> tuple[PixelVLA, str]:
    """The policy of a run, prepared for its stage, and the checkpoint that its frozen backbone comes from ("" in `pretrain`).

    Args:
        settings: the recipe.
        statistics: of the data sets to train on, by their names; added to those that the start has.
        resumed: the checkpoint of this run to go on from; None at its begin.

    Raises:
        InputError: the run cannot start from `settings.init`; says what it can start from.
    """
    if settings.stage == "pretrain":
        if settings.init not in PRESETS:
            raise InputError(
                f"pretrain starts a preset from nothing: --init one of {', '.join(PRESETS)}, not {settings.init!r}"
            )
        policy = (
            checkpoints.load_policy(resumed)
            if resumed
            else PixelVLA.start(settings.init, statistics, settings.model, seed=settings.seed)
        )
        stages.prepare(policy, settings)
        return policy, ""
    init = checkpoints.latest(Path(settings.init)) or settings.init
    recipe = checkpoints.recipe_of(init)
    came_from = recipe.stage if recipe else ""
    if settings.stage == "pue" and came_from not in ("cat", "pue"):
        raise InputError(
            f"pue starts from a checkpoint of cat, whose action decoder is trained, and {settings.init} is "
            f"{f'one of {came_from}' if came_from else 'none'}: run pixelcli train --stage cat first"
        )
    if settings.stage == "cat" and came_from in ("cat", "pue"):
        raise InputError(f"cat starts from a pretrained VLA, and {settings.init} is a checkpoint of {came_from}")
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else None
    if came_from:
        policy = checkpoints.load_policy(init, dtype)
        policy.processor.statistics.update(statistics)
    else:
        policy = PixelVLA.start(str(init), statistics, settings.model, dtype=dtype, seed=settings.seed)
    if resumed:
        checkpoints.load_part(policy, resumed)
    stages.prepare(policy, settings)
    return policy, checkpoints.base_of(init)
