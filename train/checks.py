"""What can be said before a policy is built, since a large one takes minutes: from settings, small files and arithmetic."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from model.presets import PUBLISHED
from model.sequence import check_length, is_instruction, sequence_ids
from model.settings import PRESETS, ModelSettings
from model.tokenizer import byte_tokenizer
from pixel160k.errors import InputError
from pixel160k.format.shards import split_of
from pixel160k.packages import is_installed
from pixel160k.read.episode_table import episode_table
from pixel160k.read.samples import check_chunk
from pixel160k.read.shard_sets import ShardSet, open_sets
from train import checkpoints
from train.settings import TrainSettings


def say(line: str) -> None:
    """Print a line; of several processes the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def check_machine(settings: TrainSettings) -> None:
    """Check that this process can run the recipe.

    Raises:
        InputError: several GPUs are visible to one process, or fewer than there are processes on this machine; FSDP has one
            process only, or a package to report to is missing.
    """
    processes, gpus = int(os.environ.get("WORLD_SIZE", "1")), torch.cuda.device_count()
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0")) + 1)
    if settings.fsdp and processes < 2:
        raise InputError(
            "fsdp spreads a policy over several processes, one per GPU: start them with torchrun --nproc-per-node N "
            "--no-python pixelcli train ..., or leave it out, --set fsdp=false"
        )
    if processes == 1 and gpus > 1:
        raise InputError(
            f"{gpus} GPUs are visible, and one process trains on one: start torchrun --nproc-per-node {gpus} --no-python "
            "pixelcli train ..., or show it one, CUDA_VISIBLE_DEVICES=0"
        )
    if here > gpus > 0:
        raise InputError(
            f"{here} processes are started on this machine, and {gpus} GPUs are visible to them, of which each takes one: "
            f"start torchrun --nproc-per-node {gpus}, or show them more by CUDA_VISIBLE_DEVICES"
        )
    for package in settings.report_to:
        if not is_installed(package):  # W&B leaves a folder "wandb" where a run was started, which is no package
            raise InputError(f"{package} of report_to is not installed: pip install {package}, or --set report_to=[]")


def start_of(settings: TrainSettings) -> tuple[str, str]:
    """What a run starts from, and the stage that it was trained in ("": a pretrained VLA or a preset).

    Raises:
        InputError: the stage does not start from that; says what it starts from.
    """
    if settings.stage == "pretrain":
        if settings.init not in PRESETS:
            raise InputError(
                f"pretrain starts a preset from nothing: --init one of {', '.join(PRESETS)}, not {settings.init!r}"
            )
        return settings.init, ""
    init = checkpoints.run_or_checkpoint(settings.init)
    recipe = checkpoints.recipe_of(init)
    came_from = recipe.stage if recipe else ""
    if settings.stage == "pue" and came_from not in ("cat", "pue"):
        raise InputError(
            f"pue starts from a checkpoint of cat, whose action decoder is trained, and {settings.init} is "
            f"{f'one of {came_from}' if came_from else 'none'}: run pixelcli train --stage cat first"
        )
    if settings.stage == "cat" and came_from in ("cat", "pue"):
        raise InputError(f"cat starts from a pretrained VLA, and {settings.init} is a checkpoint of {came_from}")
    return init, came_from


def check_same_start(settings: TrainSettings, last: Path) -> None:
    """Check that a run goes on from its last checkpoint in as many processes as then, and on the same frozen backbone.

    Raises:
        InputError: it does not; says how it can.
    """
    processes, then = int(os.environ.get("WORLD_SIZE", "1")), len(list(last.glob(checkpoints.progress_file("*"))))
    if processes != then:
        raise InputError(
            f"{last} was written by a run of {then} processes, and {processes} would go on: start as many as then"
        )
    base, stood_on = checkpoints.base_of(checkpoints.run_or_checkpoint(settings.init)), checkpoints.stands_on(last)
    if stood_on is None or stood_on == base or not Path(stood_on).is_absolute():
        return
    if Path(stood_on).is_dir() or Path(stood_on).name != Path(base).name:  # else it was moved
        raise InputError(
            f"{last} stands on {stood_on}, and the last checkpoint of {settings.init} is now {base}: "
            f"go on with --init {stood_on}"
        )


def check_policy(settings: TrainSettings, shards: Sequence[str]) -> None:
    """Check a policy that is about to be built against the shards that it is to learn from; no weights are read.

    Episodes whose instruction says nothing are left out, and counted on a printed line.

    Raises:
        InputError: a setting cannot be changed any more, the shards' chunks are too short, their states too long, an
            instruction has no place in the language model, or none says anything.
    """
    policy, tokenizer = _settings_of_start(settings)
    for of_one in open_sets(shards, None, None):
        check_chunk(policy.chunk, of_one.horizon, str(of_one.folder))
        if policy.reads_state:
            proprio = of_one.statistics["proprio"]
            policy.scale_state(np.zeros(len(proprio["mean"])), proprio)
        if tokenizer is not None:
            _check_instructions(settings, policy, tokenizer, of_one)


def _settings_of_start(settings: TrainSettings) -> tuple[ModelSettings, PreTrainedTokenizerFast | None]:
    """The settings of the policy to be, and its tokenizer; None where that is part of a language model to be unpacked."""
    init, came_from = start_of(settings)
    if init in PRESETS and init not in PUBLISHED:
        changed = ModelSettings.load(base=PRESETS[init].model_dump(), overrides=settings.model)
        return changed, byte_tokenizer() if init == "tiny" else None
    found, tokenizer = checkpoints.settings_of(PUBLISHED.get(init, init))
    changed = ModelSettings.load(base=found.model_dump(), overrides=settings.model)
    if came_from and changed != found:
        raise InputError(
            f"{settings.init} is a policy whose settings are fixed, and model {list(settings.model)} would change them: "
            "they are chosen where the first stage starts"
        )
    return changed, tokenizer


def _check_instructions(
    settings: TrainSettings, policy: ModelSettings, tokenizer: PreTrainedTokenizerFast, of_one: ShardSet
) -> None:
    table = episode_table(of_one.folder).select(["episode_id", "instruction"]).to_pylist()
    splits = (settings.split, settings.held_out_split)
    rows = [row for row in table if split_of(row["episode_id"]) in splits]
    told = {row["instruction"]: row["episode_id"] for row in rows if is_instruction(row["instruction"])}
    if rows and not told:
        raise InputError(f"{of_one.folder}: no episode has an instruction that says anything")
    if untold := sum(not is_instruction(row["instruction"]) for row in rows):
        say(f"left out: {untold} of {len(rows)} episodes of {of_one.dataset}, which have no instruction")
    for instruction, episode in told.items():
        try:
            tokens = _tokens(settings, policy, tokenizer, instruction)
            check_length(tokens + policy.chunk, policy.backbone.max_positions, instruction)
        except InputError as error:
            raise InputError(f"{of_one.folder}: {episode}: {error}") from None


def _tokens(
    settings: TrainSettings, policy: ModelSettings, tokenizer: PreTrainedTokenizerFast, instruction: str
) -> int:
    """How many tokens the sequence of a sample has that is pointed at, where the stage points, without action queries."""
    marks = (policy.tokens_per_mask, 1) if settings.stage == "pue" else (0, 0)
    return len(sequence_ids(tokenizer, policy.backbone.text_form, instruction, policy.backbone.vision.grid**2, *marks))


def longest_sequence(
    settings: TrainSettings, policy: ModelSettings, tokenizer: PreTrainedTokenizerFast, shards: Sequence[str]
) -> int:
    """The tokens of the longest sequence that these shards give, without action queries."""
    tables = [
        episode_table(of_one.folder).select(["instruction"]).to_pylist() for of_one in open_sets(shards, None, None)
    ]
    told = {row["instruction"] for table in tables for row in table if is_instruction(row["instruction"])}
    return max(_tokens(settings, policy, tokenizer, instruction) for instruction in told)
