"""What each stage trains: everything (pretrain), the action decoder (cat), or adapters and the three modules (pue)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from model.policy import PixelVLA
from pixel160k.errors import InputError
from train.settings import LoraSettings, TrainSettings

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer  # of the extra [train], which acting with a merged policy does without


def language_model(policy: PixelVLA) -> PreTrainedModel:
    """The language model alone: vision, projector, modules and π0's action expert stay without adapters."""
    return policy.backbone.get_language_model()


def prepare(policy: PixelVLA, settings: TrainSettings) -> None:
    """Freeze what the stage does not train, and give the language model its adapters, unless it has them already.

    What is trained is float32 whatever the frozen rest is.

    Raises:
        InputError: `lora.targets` names no layer of the language model; or the backbone cannot do gradient checkpointing.
    """
    policy.requires_grad_(settings.stage == "pretrain")
    if settings.stage == "cat":
        policy.action_decoder.requires_grad_(True)
    if settings.stage == "pue":
        if not lora_layers(policy):
            add_adapter(policy, settings.lora)
        for name, parameter in policy.backbone.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        for module in (policy.pixel_encoder, policy.prompt_encoder, policy.action_decoder):
            module.requires_grad_(True)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if settings.gradient_checkpointing:
        policy.backbone.enable_gradient_checkpointing()


def add_adapter(policy: PixelVLA, lora: LoraSettings) -> None:
    """Put LoRA layers into the language model."""
    from peft import LoraConfig

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    try:
        language_model(policy).add_adapter(config)
    except ValueError as error:
        raise InputError(f"lora.targets {lora.targets!r} fit no layer of the language model: {error}") from None


def lora_layers(policy: PixelVLA) -> dict[str, "LoraLayer"]:
    """The language model's layers that have an adapter, by their names in it."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in language_model(policy).named_modules() if isinstance(module, LoraLayer)}


def merge_adapter(policy: PixelVLA) -> None:
    """Fold the adapters into the weights that they stand beside; the policy is then as one that never had any."""
    model = language_model(policy)
    for name, layer in lora_layers(policy).items():
        layer.merge(safe_merge=True)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config


def count(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers there are in parameters."""
    return sum(parameter.numel() for parameter in parameters)


def describe(policy: PixelVLA) -> str:
    """A line that says what is trained of what."""
    parts = {
        "language model's adapters": [p for n, p in policy.backbone.named_parameters() if ".lora_" in n],
        "backbone": [p for n, p in policy.backbone.named_parameters() if ".lora_" not in n],
        "pixel-aware encoder": list(policy.pixel_encoder.parameters()),
        "prompt encoder": list(policy.prompt_encoder.parameters()),
        "action decoder": list(policy.action_decoder.parameters()),
    }
    told = []
    for name, parameters in parts.items():
        trained = count(parameter for parameter in parameters if parameter.requires_grad)
        if parameters:
            told.append(f"{name} {trained:,} of {count(parameters):,}")
    return "trained: " + ", ".join(told)
