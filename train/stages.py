"""What each stage trains: everything (pretrain), the action decoder (cat), or LoRA and the three modules (pue)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model.compiled import MOST_SHAPES
from model.policy import PixelVLA
from model.weights import are_values_read
from pixel160k.errors import InputError, one_line
from train.settings import LoraSettings, TrainSettings

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer  # of the extra [train], which acting with a merged policy does without


def adapted_models(policy: PixelVLA) -> dict[str, PreTrainedModel]:
    """The language model, with π0 its action expert too, by their folders in a checkpoint; no other part has adapters."""
    return policy.backbone.get_adapted_models()


def prepare(policy: PixelVLA, settings: TrainSettings) -> None:
    """Make a policy ready for its stage, in place: freeze what is not trained; in `pue`, add LoRA unless it is there already.

    What is trained becomes float32; what is frozen keeps its type.

    Raises:
        InputError: `lora.targets` names no layer of the language model; or gradient checkpointing does not go with the stage.
    """
    if settings.stage == "cat" and settings.gradient_checkpointing is True:
        raise InputError(
            "cat keeps no activations of the frozen backbone, so that gradient checkpointing has nothing to save: "
            "--set gradient_checkpointing=false"
        )
    policy.requires_grad_(settings.stage == "pretrain")
    if settings.stage == "cat":
        policy.action_decoder.requires_grad_(True)
    if settings.stage == "pue":
        if not lora_layers(policy):
            add_adapter(policy, settings.lora)
        for name, parameter in policy.backbone.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        for module in policy.own_modules().values():
            module.requires_grad_(True)
        if settings.dtype == "bfloat16" and not settings.fsdp:
            # Adapters, which are float32, would cast to float32 what they read, and autocast cast it back.
            for layer in lora_layers(policy).values():
                layer.cast_input_dtype_enabled = False
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if settings.compile:
        compile_blocks(policy)
    if settings.gradient_checkpointing is True:  # "auto" is decided later, by train/memory.py
        policy.backbone.use_gradient_checkpointing()


def compile_blocks(policy: PixelVLA, backend: Any = "inductor") -> None:
    """Compile the repeated blocks of a policy's backbone, in place; the names of its tensors stay as they are.

    All blocks of a class share what is compiled: once for the first length of sequences, once for any length, and anew for
    evaluation and for a batch without padding.

    Args:
        policy: to be trained.
        backend: of `torch.compile`.
    """
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, MOST_SHAPES)
    for part in policy.backbone.modules():
        if isinstance(part, GradientCheckpointingLayer):
            forward: Any = torch.compile(part.forward, backend=backend)
            part.forward = forward


def add_adapter(policy: PixelVLA, lora: LoraSettings) -> None:
    """Put LoRA layers into a policy; they begin as zero, so that its output does not change.

    Raises:
        InputError: `lora.targets` names no layer of the language model.
    """
    from peft import LoraConfig

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    for model in adapted_models(policy).values():
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
        try:
            model.add_adapter(config)
        except ValueError as error:  # PEFT's word for it
            raise InputError(
                f"lora.targets {lora.targets!r} fit no layer of the language model: {one_line(error)}"
            ) from None


def lora_layers(policy: PixelVLA) -> dict[str, "LoraLayer"]:
    """The layers of a policy that have LoRA, by their names in its backbone; empty without an adapter."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in policy.backbone.named_modules() if isinstance(module, LoraLayer)}


def merge_adapter(policy: PixelVLA) -> None:
    """Add the LoRA of a policy to the weights beside it, in place; afterwards the policy has no adapter."""
    for name, layer in lora_layers(policy).items():
        if are_values_read():
            layer.merge(safe_merge=True)
        parent, _, leaf = name.rpartition(".")
        setattr(policy.backbone.get_submodule(parent), leaf, layer.get_base_layer())
    for model in adapted_models(policy).values():
        if model._hf_peft_config_loaded:
            model._hf_peft_config_loaded = False
            del model.peft_config


def _numbers_in(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def describe(policy: PixelVLA) -> str:
    """One line that says how many parameters of each module are trained, and how many there are."""
    parts = {
        "adapters": [p for n, p in policy.backbone.named_parameters() if ".lora_" in n],
        "backbone": [p for n, p in policy.backbone.named_parameters() if ".lora_" not in n],
        **{name: list(module.parameters()) for name, module in policy.own_modules().items()},
    }
    told = []
    for name, parameters in parts.items():
        trained = _numbers_in(parameter for parameter in parameters if parameter.requires_grad)
        if parameters:
            told.append(f"{name} {trained:,} of {_numbers_in(parameters):,}")
    return "trained: " + ", ".join(told)
