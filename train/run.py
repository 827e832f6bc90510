"""One training run from recipe and shards to checkpoints: `pixelcli train`."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from model.policy import PixelVLA
from model.weights import reading
from pixel160k.errors import InputError, one_line
from pixel160k.files import TEMPORARY, only_writer
from train import checkpoints, stages
from train.checks import check_machine, check_policy, check_same_start, longest_sequence, say, start_of
from train.memory import choose_checkpointing, step_memory
from train.mixture import check_mixture, open_held_out
from train.settings import TrainSettings, check_resumable
from train.stream import open_stream, statistics_of
from train.trainer import PolicyTrainer


def train(settings: TrainSettings, shards: Sequence[str], out: Path, resume: bool = False) -> Path:
    """Train a policy, and return the folder of the last checkpoint.

    Args:
        settings: the recipe.
        shards: one or more shard directories, each a data set; every sample of them comes equally often, or by the weights of
            the recipe's `mixture`.
        out: where checkpoints go; each holds all that a resumed run or a later stage needs.
        resume: go on from the last checkpoint in `out`, with the recipe of that checkpoint (`check_resumable`). Where it has
            all steps, that is said and nothing is written.

    Raises:
        InputError: recipe, start, shards or `out` are not right, or another process trains into `out` now, which is said
            before anything is trained; or the loss was not finite, or a GPU's memory is full.
    """
    check_machine(settings)
    last = checkpoints.latest(out)
    if resume and last is None:
        raise InputError(f"{out} holds no checkpoint to resume from; start without --resume")
    if not resume and last is not None:
        raise InputError(f"{out} holds checkpoints of an earlier run; go on with --resume or choose another --out")
    if last:
        begun_with = checkpoints.recipe_of(last)
        if begun_with is None:
            raise InputError(f"{last} holds no recipe.yaml: pixelcli train did not write it")
        if settings.stage != "pretrain" and checkpoints.base_of(checkpoints.run_or_checkpoint(settings.init)) == (
            checkpoints.stands_on(last)
        ):  # what the run began with, which may have been moved with it
            begun_with = begun_with.model_copy(update={"init": settings.init})
        check_resumable(settings, begun_with, last)
        if checkpoints.steps_of(last) >= settings.max_steps:
            say(f"nothing is left to do: {last} has all {settings.max_steps} steps; more: --max-steps")
            return last
        check_same_start(settings, last)
    statistics = statistics_of(shards)
    check_mixture(settings, shards)
    check_policy(settings, shards)
    if settings.warmup_steps >= settings.max_steps:
        say(
            f"the learning rate grows through all {settings.max_steps} steps and does not reach learning_rate: "
            f"warmup_steps is {settings.warmup_steps}"
        )
    first = os.environ.get("RANK", "0") == "0"  # of the run's processes the one that writes
    with only_writer(out) if first else nullcontext():
        return _train(settings, shards, out, statistics, last)


def _train(
    settings: TrainSettings, shards: Sequence[str], out: Path, statistics: dict[str, Any], last: Path | None
) -> Path:
    """The run itself, from the checkpoint `last` on; everything that can be said before it was said."""
    torch.manual_seed(settings.seed)
    try:
        with _once_a_machine(settings):
            policy, base = build(settings, statistics, last)
        if settings.gradient_checkpointing == "auto":
            _choose_checkpointing(policy, settings, shards)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the GPU's memory does not hold the policy ({one_line(error)}): take several GPUs with --set fsdp=true"
        ) from None
    stream = open_stream(policy.processor, settings, shards)
    held_out = open_held_out(policy.processor, settings, shards)
    trainer = PolicyTrainer(policy, settings, checkpoints.seen_from(out, base), stream, held_out, out)
    if trainer.is_world_process_zero():
        size = checkpoints.bytes_of_checkpoint(policy, settings) / 1e9
        print(f"{stages.describe(policy)}; a checkpoint takes {size:.3g} GB, {settings.keep} are kept", flush=True)
        if "wandb" in settings.report_to:
            _open_wandb(settings, out)
    check_shared(trainer.accelerator, out)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except torch.OutOfMemoryError as error:
        raise trainer.told(error) from None
    if trainer.is_world_process_zero():
        print(trainer.account.summary(), flush=True)
    trainer.accelerator.wait_for_everyone()  # the last checkpoint has its name
    # The process group and its threads end with the trainer: where one of gloo's still held a tensor as Python went away,
    # torch aborted the process of a run that had succeeded (pytorch issue 190489).
    trainer.accelerator.end_training()
    # By its name, since a network's file system may show it to other machines later.
    return out / f"checkpoint-{trainer.state.global_step}"


def check_shared(accelerator: Accelerator, out: Path) -> None:
    """Check that all processes of a run see what the first one writes, as its checkpoints; each must call it.

    Raises:
        InputError: one does not; said by all, so that none waits for another.
    """
    mark = out / f"{TEMPORARY}shared"
    if accelerator.is_main_process:
        mark.touch()
    accelerator.wait_for_everyone()
    seen = accelerator.gather(torch.tensor([mark.exists()], dtype=torch.int32, device=accelerator.device))
    if accelerator.is_main_process:
        mark.unlink()
    if unseen := [str(process) for process, there in enumerate(seen.tolist()) if not there]:
        raise InputError(
            f"--out must be a folder that all machines see, and process {', '.join(unseen)} does not see what process 0 "
            f"writes to {out}"
        )


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


def _choose_checkpointing(policy: PixelVLA, settings: TrainSettings, shards: Sequence[str]) -> None:
    """Use gradient checkpointing where a GPU does not hold a step without it, and say what was chosen."""
    if settings.stage == "cat" or not torch.cuda.is_available():
        why = "cat keeps no activations that it could save" if settings.stage == "cat" else "there is no GPU"
        return say(f"gradient checkpointing: off (auto): {why}")
    policy.to(next(policy.backbone.parameters()).device)  # all of it where most of it was loaded
    length = longest_sequence(settings, policy.settings, policy.processor.tokenizer, shards)
    needed = step_memory(policy, settings, length, int(os.environ.get("WORLD_SIZE", "1")))
    capacity = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0"))).total_memory
    chosen, told = choose_checkpointing(needed, settings, capacity)
    say(told)
    if chosen:
        policy.backbone.use_gradient_checkpointing()


def _once_a_machine(settings: TrainSettings) -> AbstractContextManager[None]:
    """Let the processes of a machine not hold a copy of the weights each in its memory while they start.

    Those of DDP put tensor after tensor on their GPUs. Of FSDP's the first alone reads, and sends each its share
    (`cpu_ram_efficient_loading` in train/trainer.py).
    """
    if settings.fsdp:
        return reading(values=os.environ.get("RANK", "0") == "0")
    return reading(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")


def build(settings: TrainSettings, statistics: dict[str, Any], resumed: Path | None) -> tuple[PixelVLA, str]:
    """The policy of a run, prepared for its stage, and the checkpoint that its frozen backbone comes from ("" in `pretrain`).

    Args:
        settings: the recipe.
        statistics: of the data sets to train on, by their names; added to those that the start has.
        resumed: the checkpoint of this run to go on from; None at its begin.

    Raises:
        InputError: the run cannot start from `settings.init`; says what it can start from.
    """
    init, came_from = start_of(settings)
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    if settings.stage == "pretrain":
        policy = (
            checkpoints.load_policy(resumed)
            if resumed
            else PixelVLA.start(init, statistics, settings.model, seed=settings.seed)
        )
        stages.prepare(policy, settings)
        return policy, ""
    if came_from:
        policy = checkpoints.load_policy(init, dtype)
        policy.processor.statistics.update(statistics)
    else:
        policy = PixelVLA.start(init, statistics, settings.model, dtype=dtype, seed=settings.seed)
    if resumed:
        checkpoints.load_part(policy, resumed)
    stages.prepare(policy, settings)
    return policy, checkpoints.base_of(init)
