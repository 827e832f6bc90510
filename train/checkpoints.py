"""Checkpoints of training: what was trained, on top of what it started from.

A run that trains everything writes whole policies (`model.checkpoint`). The stages freeze nearly all of a backbone, so they
write a *part*: `config.json` with `base`, what the frozen rest comes from; `modules.safetensors`, everything but the
backbone; `adapter/`, the LoRA in PEFT's format; statistics, tokenizer and recipe. `merge` makes a part whole.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast

from model.backbones.base import Backbone
from model.checkpoint import current_name, open_checkpoint
from model.policy import PixelVLA
from model.presets import start
from model.settings import ModelSettings
from model.weights import locate, own_tensors
from pixel160k.errors import InputError
from pixel160k.files import read_json_object
from train.settings import TrainSettings, write_recipe
from train.stages import language_model, lora_layers, merge_adapter

PART = "pixelvla-part"
_CONFIG, _MODULES, _ADAPTER, _RECIPE = "config.json", "modules.safetensors", "adapter", "recipe.yaml"
_STATISTICS = "dataset_statistics.json"


def recipe_of(model: str | Path) -> TrainSettings | None:
    """The recipe by which a checkpoint, or the last one of a run, was trained; None for one that was not trained here."""
    recipe = (latest(Path(model)) or Path(model)) / _RECIPE
    return TrainSettings.load(recipe) if recipe.is_file() else None


def gather(policy: PixelVLA, settings: TrainSettings) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds, name by name in the policy: every tensor, or those that a stage did not leave in its base.

    Those that FSDP has spread over the processes come back whole, on the CPU: then every process must go through all.
    """
    for name, tensor in own_tensors(policy).items():
        if settings.stage == "pretrain" or not name.startswith("backbone.") or ".lora_" in name:
            if isinstance(tensor, DTensor):
                tensor = tensor.full_tensor().to("cpu", copy=True)  # without the padding that is gathered with it
            yield name, tensor.detach()


def save(
    folder: Path, policy: PixelVLA, tensors: Mapping[str, torch.Tensor], settings: TrainSettings, base: str
) -> None:
    """Write what a later run or a robot needs; `config.json` last, so that a folder cut short is no checkpoint.

    Args:
        folder: a new one.
        policy: as it was trained.
        tensors: of the policy, by `gather`.
        settings: the recipe of the run.
        base: what the frozen backbone comes from; not read where everything is trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(settings, folder / _RECIPE)
    if settings.stage == "pretrain":
        policy.save_pretrained(folder, tensors)
        return
    modules = {name: tensor.contiguous() for name, tensor in tensors.items() if not name.startswith("backbone.")}
    save_file(modules, folder / _MODULES, metadata={"format": "pt"})
    if lora_layers(policy):
        model = language_model(policy)
        prefix = next(name for name, module in policy.named_modules() if module is model) + "."
        adapter = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name not in modules}
        model.save_pretrained(folder / _ADAPTER, state_dict=adapter)
    policy.processor.tokenizer.save_pretrained(folder)
    (folder / _STATISTICS).write_text(json.dumps(policy.processor.statistics, indent=2, sort_keys=True) + "\n")
    config = {"model_type": PART, "base": base, "settings": policy.settings.model_dump(mode="json")}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def base_of(model: str | Path) -> str:
    """What the backbone under a checkpoint comes from: the checkpoint itself, or a part's base where it has no adapter."""
    folder = Path(model)
    if not _is_part(folder) or (folder / _ADAPTER).is_dir():
        return str(folder.resolve()) if folder.is_dir() else str(model)
    return read_json_object(folder / _CONFIG)["base"]


def load_policy(model: str | Path, dtype: torch.dtype | None = None) -> PixelVLA:
    """A policy from a whole checkpoint or a part, ready to act; adapters are folded in.

    Raises:
        InputError: the checkpoint, or what it stands on, is not to be had or does not fit; names it.
    """
    folder = latest(Path(model)) or locate(model)
    if not _is_part(folder):
        return PixelVLA.from_pretrained(folder, dtype)
    config = read_json_object(folder / _CONFIG)
    settings = ModelSettings.load(base=config["settings"])
    statistics = read_json_object(folder / _STATISTICS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    try:
        backbone = _load_backbone(config["base"], settings, tokenizer, dtype)
    except ValueError as error:
        raise InputError(f"{folder} stands on {config['base']}: {error}") from None
    policy = PixelVLA(settings, tokenizer, statistics, backbone)
    load_part(policy, folder)
    if lora_layers(policy):
        merge_adapter(policy)
    return policy.eval()


def latest(run: Path) -> Path | None:
    """The last checkpoint in the folder of a run, None where there is none."""
    found = {int(path.name.rpartition("-")[2]): path for path in run.glob("checkpoint-*[0-9]") if path.is_dir()}
    return found[max(found)] if found else None


def load_part(policy: PixelVLA, folder: Path) -> None:
    """Fill the modules of a policy from a part, and give its language model the part's adapter.

    Raises:
        InputError: the part's tensors are not those of the policy; lists them.
    """
    modules = {current_name(name): tensor for name, tensor in load_file(folder / _MODULES).items()}
    wanted = {name for name in policy.state_dict() if not name.startswith("backbone.")}
    if unlike := sorted(wanted ^ modules.keys()):
        raise InputError(f"the tensors of {folder / _MODULES} do not fit: {', '.join(unlike)}")
    policy.load_state_dict(modules, strict=False)
    if (folder / _ADAPTER).is_dir():
        language_model(policy).load_adapter(str(folder / _ADAPTER))


def _load_backbone(base: str, settings: ModelSettings, tokenizer: Any, dtype: torch.dtype | None) -> Backbone:
    if Path(base).is_dir() and (_is_part(Path(base)) or open_checkpoint(base).is_policy):
        return load_policy(base, dtype).backbone
    overrides = [f"backbone={json.dumps(settings.backbone.model_dump(mode='json'))}"]
    return start(base, overrides, tokenizer=tokenizer, dtype=dtype).backbone


def _is_part(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() and read_json_object(folder / _CONFIG).get("model_type") == PART


def merge(checkpoint: Path, out: Path) -> None:
    """Write a part as a whole policy that stands alone, adapters folded into the weights.

    Raises:
        InputError: it is no part, or `out` is not empty.
    """
    checkpoint = latest(checkpoint) or checkpoint
    if not _is_part(checkpoint):
        raise InputError(f"{checkpoint} is no checkpoint of cat or pue; a whole policy needs no merging")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another --out")
    load_policy(checkpoint).save_pretrained(out)
