"""Checkpoints of policies: finding one, knowing whose it is, reading what stands beside the weights, writing one.

A PixelVLA checkpoint is a folder of `config.json` (`model_type` "pixelvla", the settings), `dataset_statistics.json`, the
tokenizer, and safetensors under the names of the modules. A policy also starts from the folders of OpenVLA and of π0, whose
weights fill the backbone alone.
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

from model.backbones import openvla_checkpoint, pi0_checkpoint
from model.backbones.openvla import OpenVLABackbone
from model.backbones.pi0 import Pi0Backbone
from model.backbones.vision import resize_positions
from model.settings import ModelSettings, OpenVLASettings, Pi0Settings
from model.weights import load_weights, locate, own_tensors, read_json, same_names, save_weights, tie, without_memory
from pixel160k.errors import InputError

Backbone = OpenVLABackbone | Pi0Backbone

_CONFIG, _STATISTICS, _TOKENIZER = "config.json", "dataset_statistics.json", "tokenizer.json"
_MODEL_TYPE = "pixelvla"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds beside its weights.

    Attributes:
        folder: where it lies.
        kind: "pixelvla", a whole policy; "openvla" or "pi0", a backbone alone.
        settings: of the policy; around a backbone alone, the default modules.
        statistics: of data sets by name, in OpenVLA's names; may be empty.
        tokenizer: the language model's, or None where the folder has no tokenizer.json.
    """

    folder: Path
    kind: str
    settings: ModelSettings
    statistics: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast | None


def open_checkpoint(model: str | Path) -> Checkpoint:
    """Find a checkpoint by hub id or folder and read all but its weights.

    Raises:
        InputError: it is not to be had, a file is unreadable, or it is of a kind that no policy starts from.
    """
    folder = locate(model)
    config = read_json(folder / _CONFIG)
    kind = config.get("model_type") or config.get("type")  # LeRobot's name for it
    if kind == _MODEL_TYPE:
        settings = ModelSettings.load(base=config.get("settings"))
    elif kind == "openvla":
        settings = ModelSettings(backbone=openvla_checkpoint.read_settings(folder))
    elif kind == "pi0":
        settings = ModelSettings(backbone=pi0_checkpoint.read_settings(folder))
    else:
        raise InputError(f"{folder / _CONFIG}: model_type is {kind!r}; a policy starts from pixelvla, openvla or pi0")
    statistics = config.get("norm_stats") or {}  # where OpenVLA keeps them; its fine-tuning writes the file instead
    if (folder / _STATISTICS).is_file():
        statistics = {**statistics, **read_json(folder / _STATISTICS)}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder) if (folder / _TOKENIZER).is_file() else None
    return Checkpoint(folder, kind, settings, statistics, tokenizer)


def load_backbone(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Backbone:
    """The trained backbone of an OpenVLA or π0 checkpoint, in evaluation mode.

    Args:
        checkpoint: of kind "openvla" or "pi0".
        dtype: of the parameters; by default each as it is stored.

    Raises:
        InputError: one line that lists every tensor that is missing, unexpected or of a wrong shape.
    """
    if checkpoint.kind == "openvla":
        return openvla_checkpoint.load_openvla(checkpoint.folder, dtype)
    return pi0_checkpoint.load_pi0(checkpoint.folder, dtype)


def with_settings(backbone: Backbone, settings: OpenVLASettings | Pi0Settings) -> Backbone:
    """A trained backbone under other settings: levels are free, for another image size the positions are interpolated.

    All other tensors are shared with `backbone`, not copied.

    Raises:
        InputError: the settings ask for tensors that the trained backbone does not have in that shape; lists them.
    """
    if settings == backbone.settings:
        return backbone
    build: Any = type(backbone)
    changed = without_memory(partial(build, settings))
    trained, wanted = own_tensors(backbone), own_tensors(changed)
    grid = backbone.settings.vision.grid
    for name, empty in wanted.items():
        if "position_embedding" in name and name in trained and trained[name].shape != empty.shape:
            rows = trained[name].detach().reshape(-1, trained[name].shape[-1])
            first = len(rows) - grid**2  # DINOv2's row for the class token is no place on the image
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
    tie(changed)
    return changed.train(backbone.training)


def save_checkpoint(
    folder: str | Path,
    policy: nn.Module,
    settings: ModelSettings,
    statistics: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast | None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a whole policy; `config.json` comes last, so that a folder cut short is not taken for a checkpoint.

    `tensors`: by default the policy's `own_tensors`; gathered ones where FSDP has spread them over processes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)
    save_weights(own_tensors(policy) if tensors is None else tensors, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    _write_json(folder / _STATISTICS, dict(statistics))
    _write_json(folder / _CONFIG, {"model_type": _MODEL_TYPE, "settings": settings.model_dump(mode="json")})


def load_policy(policy: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> None:
    """Fill a policy made by `model.weights.without_memory` from a checkpoint of kind "pixelvla".

    Raises:
        InputError: one line that lists every tensor that is missing, unexpected or of a wrong shape.
    """
    load_weights(policy, checkpoint.folder, same_names(policy), dtype=dtype)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
