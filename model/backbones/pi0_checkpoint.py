"""π0's checkpoints, as LeRobot and transformers write them: their config.json as settings, their weights as a backbone.

transformers itself translates LeRobot's tensor names; this module refuses what it would fill at random.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PI0Config, PI0ForConditionalGeneration

from model.backbones.settings import GemmaSettings, Pi0Settings, spread_levels
from model.weights import tensor_files
from pixel160k.errors import InputError, one_line
from pixel160k.files import read_json_object

_SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")

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


def load_pi0(folder: Path, settings: Pi0Settings, dtype: torch.dtype | None = None) -> PI0ForConditionalGeneration:
    """The whole π0 of a checkpoint, with the parts in `UNUSED`, whose weights are random where the checkpoint has none.

    Args:
        folder: holds safetensors.
        settings: of the checkpoint, as `read_settings` gives them.
        dtype: of the parameters; by default as they are stored.

    Raises:
        InputError: there are no safetensors, or tensors are missing, unexpected or of a wrong shape (one line lists them).
    """
    tensor_files(folder)  # safetensors or nothing
    load: Any = PI0ForConditionalGeneration.from_pretrained
    loaded, found = load(
        folder,
        config=pi0_config(settings),
        dtype=dtype or "auto",
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    faults = {
        "missing": sorted(set(found["missing_keys"]) - set(UNUSED)),
        "unexpected": sorted(found["unexpected_keys"]),
        "wrong": [f"{name} is {tuple(is_)} and should be {tuple(due)}" for name, is_, due in found["mismatched_keys"]],
    }
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
        raise InputError(f"the tensors of {folder} do not fit: {listed}")
    return loaded
