"""π0's checkpoints, as LeRobot and transformers write them: their config.json as settings, their weights as a backbone.

LeRobot has named the tensors in several ways over time; docs/model.md says which folders were published with which.
"""

import re
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PI0Config

from model.backbones.settings import GemmaSettings, Pi0Settings, spread_levels
from model.weights import TensorSource, own_tensors, tensor_files
from pixel160k.errors import InputError, one_line
from pixel160k.files import read_json_object

_SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")

_LEROBOT = {  # what LeRobot's config.json says of the model, each in all its spellings; other values are another model
    "paligemma_variant": ("gemma_2b",),
    "action_expert_variant": ("gemma_300m",),
    "quantization_config": (None,),
}

_COMPUTED = (  # what changes the numbers: all of it must come back from the settings
    *_SIZES[:-1],
    "hidden_size",
    "intermediate_size",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_parameters",
    "attention_bias",
    "use_bidirectional_attention",
    "vision_use_head",
)

UNUSED = (
    "embed_action_time.action_in_proj.weight",
    "embed_action_time.action_in_proj.bias",
    "embed_action_time.action_time_mlp_in.weight",
    "embed_action_time.action_time_mlp_in.bias",
    "embed_action_time.action_time_mlp_out.weight",
    "embed_action_time.action_time_mlp_out.bias",
    "action_out_proj.weight",
    "action_out_proj.bias",
    "model.dit.embed_tokens.weight",
)
"""Tensors of a π0 checkpoint, as transformers names them, that this variant does without: flow matching, and the expert's
word embeddings, which π0 never reads either."""

_RENAMED = (  # how parts were named, one rule after the other, and as transformers names them
    (r"^model\.(?=paligemma|gemma_expert|state_proj|action_)", ""),  # of policies that LeRobot trained
    (r"^paligemma_with_expert\.", ""),
    (r"^paligemma\.model\.", "paligemma."),
    (r"^paligemma\.(language_model\.)?lm_head\.", "paligemma.language_model.embed_tokens."),
    (r"^paligemma\.language_model\.model\.", "paligemma.language_model."),
    (r"^paligemma\.vision_tower\.vision_model\.", "paligemma.vision_tower."),
    (r"^paligemma\.", "model.vlm."),
    (r"^gemma_expert\.lm_head\.", "model.dit.embed_tokens."),
    (r"^gemma_expert\.model\.", "model.dit."),
    (r"^(state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out)\.", r"embed_action_time.\1."),
)
_NORMALISATION = re.compile(r"(normalize_(inputs|targets)|unnormalize_outputs)\.buffer_")
"""Means and deviations that LeRobot once kept among the weights; a policy here has those of the data that it is trained on."""


def pi0_config(settings: Pi0Settings) -> PI0Config:
    """transformers' configuration of the whole π0."""
    vision = settings.vision

    def gemma(sizes: GemmaSettings) -> dict[str, object]:
        return {
            "model_type": "gemma",
            **sizes.model_dump(),
            **settings.model_dump(
                include={"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"}
            ),
            "vocab_size": settings.vocab_size,
        }

    return PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": gemma(settings.language),
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": vision.siglip.hidden_size,
                "intermediate_size": vision.siglip.mlp_size,
                "num_hidden_layers": vision.siglip.depth,
                "num_attention_heads": vision.siglip.heads,
                "layer_norm_eps": vision.siglip.layer_norm_eps,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "vision_use_head": False,
            },
            "projection_dim": settings.language.hidden_size,
            "image_token_id": settings.vocab_size,
        },
        dit_config=gemma(settings.expert),
        max_state_dim=settings.state_size,
    )


def read_settings(folder: Path) -> Pi0Settings:
    """The sizes of a π0 checkpoint; what its config.json leaves out is as published.

    Raises:
        InputError: config.json cannot be read, or describes a model that this implementation does not compute.
    """
    stored = read_json_object(folder / "config.json")
    for name, meant in _LEROBOT.items():
        if stored.get(name, meant[0]) not in meant:
            raise InputError(f"{folder / 'config.json'}: {name} must be {meant[0]!r}, not {stored[name]!r}")
    known = {name: stored[name] for name in ("vlm_config", "dit_config", "max_state_dim") if stored.get(name)}
    try:
        config: Any = PI0Config(**known)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'}: {one_line(error)}") from None
    vision, language, expert = config.vlm_config.vision_config, config.vlm_config.text_config, config.dit_config
    try:
        settings = Pi0Settings.load(
            base={
                "vision": {
                    "image_size": vision.image_size,
                    "patch_size": vision.patch_size,
                    "siglip": {
                        "hidden_size": vision.hidden_size,
                        "depth": vision.num_hidden_layers,
                        "heads": vision.num_attention_heads,
                        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
                        "layer_norm_eps": vision.layer_norm_eps,
                    },
                    "levels": spread_levels(vision.num_hidden_layers),
                },
                "language": {name: getattr(language, name) for name in ("hidden_size", "intermediate_size")},
                "expert": {name: getattr(expert, name) for name in ("hidden_size", "intermediate_size")},
                **{name: getattr(language, name) for name in _SIZES},
                "state_size": config.max_state_dim,
            }
        )
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None
    rebuilt: Any = pi0_config(settings)
    for part, given, ours in (
        ("vlm_config.vision_config", vision, rebuilt.vlm_config.vision_config),
        ("vlm_config.text_config", language, rebuilt.vlm_config.text_config),
        ("dit_config", expert, rebuilt.dit_config),
    ):
        for name in _COMPUTED:
            if getattr(given, name, None) != getattr(ours, name, None):
                raise InputError(
                    f"{folder / 'config.json'}: {part}.{name} must be {getattr(ours, name)!r}, not {getattr(given, name)!r}"
                )
    return settings


def tensor_sources(backbone: nn.Module, folder: Path) -> tuple[dict[str, TensorSource], set[str]]:
    """Which tensor of a π0 checkpoint each parameter of a `Pi0Backbone` comes from, and those that play no part.

    Raises:
        InputError: there are no safetensors, or they cannot be read.
    """
    stored: dict[str, str] = {}
    unused = set()
    for name in sorted(tensor_files(folder), key=lambda name: ("lm_head" in name, name)):
        ours = our_name(name)
        if _NORMALISATION.match(name) or ours in UNUSED or (ours in stored and "lm_head" in name):
            unused.add(name)  # a head beside the word embeddings that it is tied to says nothing more
        else:
            stored.setdefault(ours.removeprefix("embed_action_time."), name)
    shapes = {name: tuple(tensor.shape) for name, tensor in own_tensors(backbone).items()}
    return {name: TensorSource(stored.get(name, name), shape) for name, shape in shapes.items()}, unused


def our_name(tensor: str) -> str:
    """The name by which transformers knows a tensor of a π0 checkpoint, given the one under which it was published."""
    for pattern, ours in _RENAMED:
        tensor = re.sub(pattern, ours, tensor)
    return tensor
