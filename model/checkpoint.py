"""Checkpoints of policies: find one, tell whose it is, read what stands beside the weights, write one.

A PixelVLA checkpoint is a folder of `config.json` (`model_type` "pixelvla", the settings), `dataset_statistics.json`, the
tokenizer, and safetensors under the names of the modules. A policy also starts from the published checkpoints of each
backbone, whose weights fill the backbone alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from model.backbones import BACKBONES, backbone_class
from model.backbones.base import Backbone
from model.backbones.settings import BackboneSettings
from model.backbones.vision import resize_positions
from model.settings import ModelSettings
from model.statistics import checked_statistics
from model.tokenizer import read_tokenizer
from model.weights import (
    TensorSource,
    load_weights,
    locate,
    own_tensors,
    retie_weights,
    save_weights,
    tensor_files,
    without_memory,
    writing,
)
from pixel160k.errors import InputError
from pixel160k.files import read_json_object, write_text

_CONFIG, _STATISTICS, _TOKENIZER = "config.json", "dataset_statistics.json", "tokenizer.json"
_ADAPTER = "adapter_config.json"  # PEFT's
_MODEL_TYPE = "pixelvla"

_RENAMED = {  # modules as checkpoints named them once, and as they are named now
    "pixel_encoder.projections.": "pixel_encoder.level_projections.",
    "pixel_encoder.mlp.": "pixel_encoder.token_mlp.",
    "pixel_encoder.null": "pixel_encoder.null_tokens",
    "prompt_encoder.place.": "prompt_encoder.point_projection.",
    "prompt_encoder.kind.": "prompt_encoder.kind_embeddings.",
    "prompt_encoder.shape.": "prompt_encoder.mask_downscaling.",
    "prompt_encoder.mlp.": "prompt_encoder.token_mlp.",
    "prompt_encoder.null": "prompt_encoder.null_token",
}


def current_name(tensor: str) -> str:
    """The name that a tensor of a PixelVLA checkpoint has today, given the one under which it was written."""
    for old, new in _RENAMED.items():
        if tensor == old or (old.endswith(".") and tensor.startswith(old)):
            return new + tensor.removeprefix(old)
    return tensor


_ADDED = {"mask_places": False, "prompt_features": False}  # settings that older checkpoints lack: as they were trained


def load_settings(written: Mapping[str, Any]) -> ModelSettings:
    """The settings of a policy as its checkpoint has them; what one of an older version does not say is as it was then.

    Raises:
        InputError: a setting is unknown or wrong.
    """
    backbone = written.get("backbone")
    if isinstance(backbone, dict):
        written = {**written, "backbone": {"pad_images": False} | backbone}  # π0's images were stretched once
    return ModelSettings.load(base=_ADDED | dict(written))


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds beside its weights.

    Attributes:
        folder: where it lies.
        kind: "pixelvla", a whole policy; else a key of `model.backbones.BACKBONES`, a backbone alone.
        settings: of the policy; around a backbone alone, the default modules.
        statistics: of data sets by name, in OpenVLA's names; may be empty.
        tokenizer: the language model's, or None where the folder has no tokenizer.json.
    """

    folder: Path
    kind: str
    settings: ModelSettings
    statistics: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast | None

    @property
    def is_policy(self) -> bool:
        """Whether it holds a whole policy, and not a backbone alone."""
        return self.kind == _MODEL_TYPE


def open_checkpoint(model: str | Path) -> Checkpoint:
    """Find a checkpoint by hub id or folder, of a policy or of a backbone alone, and read all of it but the weights.

    Raises:
        InputError: it is not found, a file is unreadable, or it is of a kind that no policy starts from.
    """
    folder = locate(model)
    if not (folder / _CONFIG).is_file() and (folder / _ADAPTER).is_file():
        base = read_json_object(folder / _ADAPTER).get("base_model_name_or_path")
        raise InputError(
            f"{folder} holds a LoRA adapter alone, of {base}: merge it into that model, by PEFT's merge_and_unload, and "
            "save the whole"
        )
    config = read_json_object(folder / _CONFIG)
    kind = config.get("model_type") or config.get("type")  # LeRobot's name for it
    if kind == _MODEL_TYPE:
        if not isinstance(written := config.get("settings"), dict):
            raise InputError(f"{folder / _CONFIG} holds no settings; copy the checkpoint anew")
        settings = load_settings(written)
    elif isinstance(kind, str) and kind in BACKBONES:
        settings = ModelSettings(backbone=backbone_class(kind).read_settings(folder))
    else:
        *kinds, last = _MODEL_TYPE, *BACKBONES
        known = f"{', '.join(kinds)} or {last}"
        raise InputError(f"{folder / _CONFIG}: model_type is {kind!r}; a policy starts from {known}")
    # OpenVLA keeps statistics in norm_stats; its fine-tuning writes the file instead.
    statistics = checked_statistics(config.get("norm_stats") or {}, f"{folder / _CONFIG}: norm_stats")
    tokenizer = read_tokenizer(folder) if (folder / _TOKENIZER).is_file() else None
    return Checkpoint(folder, kind, settings, statistics | read_statistics(folder), tokenizer)


def read_statistics(folder: Path) -> dict[str, Any]:
    """The statistics of data sets by name that a checkpoint's folder holds in a file of their own; empty without that file.

    Raises:
        InputError: as `checked_statistics`.
    """
    file = folder / _STATISTICS
    return checked_statistics(read_json_object(file), str(file)) if file.is_file() else {}


def load_backbone(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Backbone:
    """The trained backbone of a published checkpoint, in evaluation mode.

    Args:
        checkpoint: of a backbone alone.
        dtype: of the parameters; by default each as it is stored.

    Raises:
        InputError: one line that lists every tensor that is missing, unexpected or of a wrong shape.
    """
    return backbone_class(checkpoint.kind).load(checkpoint.folder, dtype)


def with_settings(backbone: Backbone, settings: BackboneSettings) -> Backbone:
    """A trained backbone under other settings: other levels, or another image size, to which its positions are interpolated.

    All other tensors are shared with `backbone`, not copied.

    Raises:
        InputError: the settings ask for tensors that the trained backbone does not have in that shape; lists them.
    """
    if settings == backbone.settings:
        return backbone
    changed = without_memory(partial(type(backbone), settings))
    trained, wanted = own_tensors(backbone), own_tensors(changed)
    grid = backbone.settings.vision.grid
    for name in backbone.position_tables():
        if trained[name].shape != wanted[name].shape:
            rows = trained[name].detach().reshape(-1, trained[name].shape[-1])
            first = len(rows) - grid**2  # a row for the class token is no position on the image
            positions = torch.cat([rows[:first], resize_positions(rows[first:], settings.vision.grid)])
            trained[name] = nn.Parameter(positions.reshape(*trained[name].shape[:-2], *positions.shape))
    unlike = sorted(
        name
        for name in trained.keys() | wanted.keys()
        if name not in trained or name not in wanted or trained[name].shape != wanted[name].shape
    )
    if unlike:
        raise InputError(f"a trained backbone keeps its sizes; these settings would change {', '.join(unlike)}")
    changed.load_state_dict(trained, strict=False, assign=True)
    retie_weights(changed)
    return changed.train(backbone.training)


def save_checkpoint(
    folder: str | Path,
    policy: nn.Module,
    settings: ModelSettings,
    statistics: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast | None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a whole policy; `config.json` comes last, so that an unfinished folder is not taken for a checkpoint.

    `tensors`: by default the policy's `own_tensors`; gathered ones where FSDP has spread them over processes.

    Raises:
        OSError: the disk is full, or whatever else keeps it from being written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)
    save_weights(own_tensors(policy) if tensors is None else tensors, folder)
    if tokenizer is not None:
        with writing(folder):
            tokenizer.save_pretrained(folder)
    _write_json(folder / _STATISTICS, dict(statistics))
    _write_json(folder / _CONFIG, {"model_type": _MODEL_TYPE, "settings": settings.model_dump(mode="json")})


def load_policy_weights(policy: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> None:
    """Fill a policy made by `model.weights.without_memory` from the checkpoint of a whole policy.

    `dtype`: of the backbone's parameters, and those of the modules around it are then float32; by default each as it is stored.

    Raises:
        InputError: one line that lists every tensor that is missing, unexpected or of a wrong shape.
    """
    stored = {current_name(name): name for name in tensor_files(checkpoint.folder)}
    sources = {
        name: TensorSource(
            stored.get(name, name),
            tuple(tensor.shape),
            dtype=torch.float32 if dtype and not name.startswith("backbone.") else dtype,
        )
        for name, tensor in own_tensors(policy).items()
    }
    load_weights(policy, checkpoint.folder, sources)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
