"""Checkpoints of training: what was trained, on top of what it started from.

A run that trains everything writes whole policies (`model.checkpoint`). The stages freeze nearly all of a backbone, so they
write a *part*: `config.json` with `base`, the checkpoint that the frozen rest comes from; `modules.safetensors`, everything
but the backbone; `adapter/`, the LoRA in PEFT's format, over π0 `adapter_expert/` too; statistics, tokenizer and recipe. `merge`
makes a part whole.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast

from model.backbones.base import ADAPTER, Backbone
from model.checkpoint import current_name, load_settings, open_checkpoint, read_statistics
from model.policy import PixelVLA
from model.presets import start
from model.settings import ModelSettings
from model.tokenizer import read_tokenizer
from model.weights import locate, on_device, own_tensors, reading_to
from pixel160k.errors import InputError
from pixel160k.files import new_folder, read_json_object
from pixel160k.settings import read_settings
from train.settings import TrainSettings, write_recipe
from train.stages import adapted_models, merge_adapter

PART = "pixelvla-part"
_CONFIG, _MODULES, _RECIPE = "config.json", "modules.safetensors", "recipe.yaml"
_STATISTICS = "dataset_statistics.json"


def recipe_of(model: str | Path) -> TrainSettings | None:
    """The recipe by which a policy was trained.

    Args:
        model: the folder of a checkpoint or of a run, whose last checkpoint is meant; or a hub id.

    Returns:
        None for a hub id, and for a checkpoint that `pixelcli train` did not write.
    """
    recipe = Path(run_or_checkpoint(model)) / _RECIPE
    if not recipe.is_file():
        return None
    settings = read_settings(recipe)
    # Of a checkpoint from before samples were read from where they lie: shuffling needs no buffer any more.
    settings.pop("shuffle_buffer", None)
    return TrainSettings.load(base=settings)


def tensors_to_save(policy: PixelVLA, settings: TrainSettings) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a checkpoint of a run holds, with their names in the policy.

    `pretrain` saves all. The other stages leave the frozen tensors of the backbone out, since their base holds them.
    Tensors that FSDP has spread over the processes are gathered on the CPU; then every process must iterate to the end.
    """
    for name, tensor in own_tensors(policy).items():
        if _is_saved(name, settings):
            if isinstance(tensor, DTensor):
                tensor = tensor.full_tensor().to("cpu", copy=True)  # without the padding that is gathered with it
            yield name, tensor.detach()


def _is_saved(tensor: str, settings: TrainSettings) -> bool:
    return settings.stage == "pretrain" or not tensor.startswith("backbone.") or ".lora_" in tensor


def bytes_of_checkpoint(policy: PixelVLA, settings: TrainSettings) -> int:
    """How many bytes a checkpoint of a run takes: its tensors, and two numbers of AdamW for each that is trained.

    The tokenizer and small files come on top.
    """
    tensors = own_tensors(policy)
    saved = sum(t.numel() * t.element_size() for name, t in tensors.items() if _is_saved(name, settings))
    return saved + sum(2 * t.numel() * t.element_size() for t in tensors.values() if t.requires_grad)


def save(
    folder: Path, policy: PixelVLA, tensors: Mapping[str, torch.Tensor], settings: TrainSettings, base: str
) -> None:
    """Write what a later run or a robot needs; `config.json` comes last, so that an unfinished folder is no checkpoint.

    Args:
        folder: to write into.
        policy: as it was trained.
        tensors: of the policy, see `tensors_to_save`.
        settings: the recipe of the run.
        base: the checkpoint that the frozen backbone comes from, as `seen_from` says it; without meaning in `pretrain`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(settings, folder / _RECIPE)
    if settings.stage == "pretrain":
        policy.save_pretrained(folder, tensors)
        return
    modules = {name: tensor.contiguous() for name, tensor in tensors.items() if not name.startswith("backbone.")}
    save_file(modules, folder / _MODULES, metadata={"format": "pt"})
    for name, model in adapted_models(policy).items():
        prefix = next(of for of, module in policy.named_modules() if module is model) + "."
        adapter = {of.removeprefix(prefix): tensor for of, tensor in tensors.items() if of.startswith(prefix)}
        if adapter:
            model.save_pretrained(folder / name, state_dict=adapter)
    policy.processor.tokenizer.save_pretrained(folder)
    (folder / _STATISTICS).write_text(json.dumps(policy.processor.statistics, indent=2, sort_keys=True) + "\n")
    config = {"model_type": PART, "base": base, "settings": policy.settings.model_dump(mode="json")}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def base_of(model: str | Path) -> str:
    """The checkpoint that holds the backbone of a policy: the policy's own, or its base where it is a part without adapter.

    Args:
        model: hub id, or the folder of a checkpoint.

    Returns:
        A hub id, or an absolute path.
    """
    folder = Path(model)
    if not _is_part(folder) or (folder / ADAPTER).is_dir():
        return str(folder.resolve()) if folder.is_dir() else str(model)
    return _read_part(folder)[0]


def stands_on(part: Path) -> str | None:
    """The base of a part, a hub id or an absolute path; None for a whole policy."""
    return _read_part(part)[0] if _is_part(part) else None


def seen_from(run: Path, base: str) -> str:
    """A base as the checkpoints of a run store it: where it lies beside the run, relative to it, so that both can be moved.

    Args:
        run: the folder of the run.
        base: a hub id, or a path.

    Returns:
        A hub id, an absolute path, or a path that begins with "../", as "../cat/checkpoint-100".
    """
    beside = run.resolve().parent
    if base and Path(base).is_dir() and Path(base).resolve().is_relative_to(beside):
        return f"../{Path(base).resolve().relative_to(beside).as_posix()}"
    return base


def settings_of(model: str | Path) -> tuple[ModelSettings, PreTrainedTokenizerFast]:
    """The settings and the tokenizer of a policy, without its weights.

    Args:
        model: hub id, or the folder of a checkpoint; it may be a part.

    Raises:
        InputError: it is missing or cannot be read.
    """
    folder = locate(model)
    if _is_part(folder):
        return _read_part(folder)[1], read_tokenizer(folder)
    checkpoint = open_checkpoint(folder)
    return checkpoint.settings, checkpoint.tokenizer or read_tokenizer(folder)


def statistics_of(model: str | Path) -> dict[str, Any]:
    """The statistics of data sets by name that a policy acts by, without its weights; as `load_policy` has them."""
    folder = latest(Path(model)) or locate(model)
    return read_statistics(folder) if _is_part(folder) else open_checkpoint(folder).statistics


def load_policy(
    model: str | Path, dtype: torch.dtype | None = None, merged: bool = True, device: str | None = None
) -> PixelVLA:
    """A policy that is ready to act.

    Args:
        model: hub id, or the folder of a checkpoint or of a run, whose last checkpoint is taken. It may be a part.
        dtype: of the backbone's parameters; the modules around it are then float32. By default each as it is stored.
        merged: add the adapters to the weights beside them, which is faster. Weights in bfloat16 then round what was
            learned (docs/training.md says how much); unmerged the policy computes what was trained.
        device: as torch names it, "cuda:1"; a backbone's tensors go there one by one, past the host's memory. By default it
            is where `model.weights.reading` says.

    Raises:
        InputError: the checkpoint, or the one it stands on, is missing or does not fit; names it. Or the device cannot be
            used, or has too little memory.
    """
    if device is not None:
        with reading_to(device):
            return on_device(load_policy(model, dtype, merged), device)
    folder = latest(Path(model)) or locate(model)
    if not _is_part(folder):
        return PixelVLA.from_pretrained(folder, dtype)
    base, settings = _read_part(folder)
    statistics = read_statistics(folder)
    tokenizer = read_tokenizer(folder)
    try:
        backbone = _load_backbone(base, settings, tokenizer, dtype)
    except InputError as error:
        raise InputError(f"{folder} stands on {base}: {error}") from None
    policy = PixelVLA(settings, tokenizer, statistics, backbone)
    load_part(policy, folder)
    if merged:
        merge_adapter(policy)
    return policy.eval()


def latest(run: Path) -> Path | None:
    """The checkpoint with the most steps in the folder of a run; None where there is none."""
    return max(of_run(run), key=steps_of, default=None)


def of_run(run: Path) -> list[Path]:
    """The checkpoints that a run wrote into its folder, those with more steps later; a user's copies beside them are none."""
    found = (path for path in run.glob("checkpoint-*") if re.fullmatch("checkpoint-[0-9]+", path.name))
    return sorted((path for path in found if path.is_dir()), key=steps_of)


def run_or_checkpoint(model: str | Path) -> str:
    """The last checkpoint where `model` is the folder of a run; else `model` itself: a checkpoint, or a hub id."""
    return str(latest(Path(model)) or model)


def steps_of(checkpoint: Path) -> int:
    """The optimizer steps after which a checkpoint of a run was written: its name says it."""
    return int(checkpoint.name.rpartition("-")[2])


def progress_file(process: int | str) -> str:
    """The file of a checkpoint in which a process of the run saves how far it has read, and its account."""
    return f"progress-{process}.json"


def load_part(policy: PixelVLA, folder: Path) -> None:
    """Load a part into a policy: the tensors of its modules, and its adapters.

    Args:
        policy: over the part's base, without an adapter of its own.
        folder: a checkpoint of `cat` or `pue`.

    Raises:
        InputError: the part's tensors are not those of the policy; lists them.
    """
    modules = {current_name(name): tensor for name, tensor in load_file(folder / _MODULES).items()}
    wanted = {name for name in policy.state_dict() if not name.startswith("backbone.")}
    if unlike := sorted(wanted ^ modules.keys()):
        raise InputError(f"the tensors of {folder / _MODULES} do not fit: {', '.join(unlike)}")
    policy.load_state_dict(modules, strict=False)
    for name, model in adapted_models(policy).items():
        if (folder / name).is_dir():
            model.load_adapter(str(folder / name))


def _load_backbone(base: str, settings: ModelSettings, tokenizer: Any, dtype: torch.dtype | None) -> Backbone:
    if Path(base).is_dir() and (_is_part(Path(base)) or open_checkpoint(base).is_policy):
        return load_policy(base, dtype).backbone
    overrides = [f"backbone={json.dumps(settings.backbone.model_dump(mode='json'))}"]
    return start(base, overrides, tokenizer=tokenizer, dtype=dtype).backbone


def _is_part(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() and read_json_object(folder / _CONFIG).get("model_type") == PART


def _read_part(folder: Path) -> tuple[str, ModelSettings]:
    """The base of a part, a hub id or an absolute path, and the settings of its policy."""
    config = read_json_object(folder / _CONFIG)
    if not isinstance(config.get("base"), str) or not isinstance(config.get("settings"), dict):
        raise InputError(f"{folder / _CONFIG} lacks base or settings; copy the checkpoint anew")
    base = config["base"]
    if base.startswith("../"):  # `seen_from`
        base = os.path.normpath(folder.resolve().parent / base)
    return base, load_settings(config["settings"])


def merge(checkpoint: Path, out: Path) -> None:
    """Write a whole policy that needs no other checkpoint, out of a part and its base; the adapter is merged.

    Args:
        checkpoint: of `cat` or `pue`, or the folder of a run.
        out: a new folder.

    Raises:
        InputError: the checkpoint is no part or cannot be loaded, or `out` is not empty.
    """
    checkpoint = latest(checkpoint) or checkpoint
    if not _is_part(checkpoint):
        missing = "" if checkpoint.is_dir() else "there is no such folder"
        raise InputError(f"{checkpoint} is no checkpoint of cat or pue: {missing or 'a whole policy needs no merging'}")
    with new_folder(out) as unfinished:
        load_policy(checkpoint).save_pretrained(unfinished)
