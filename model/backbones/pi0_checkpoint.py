"""π0's checkpoints, as LeRobot and transformers write them: their config.json as settings, their weights as a backbone.

transformers itself translates LeRobot's tensor names; this module refuses what it would fill at random.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PI0Config, PI0ForConditionalGeneration

from model.backbones.pi0 import UNUSED, Pi0Backbone, pi0_config
from model.settings import Pi0Settings, even_levels
from model.weights import read_json, tensor_files, without_memory
from pixel160k.errors import InputError

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


def read_settings(folder: Path) -> Pi0Settings:
    """The sizes of a π0 checkpoint; what its config.json leaves out is as published.

    Raises:
        InputError: config.json cannot be read, or describes a model that this implementation does not compute.
    """
    stored = read_json(folder / "config.json")
    known = {name: stored[name] for name in ("vlm_config", "dit_config", "max_state_dim") if stored.get(name)}
    try:
        config: Any = PI0Config(**known)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'}: {' '.join(str(error).split())}") from None
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
                    "levels": even_levels(vision.num_hidden_layers),
                },
                "language": {name: getattr(language, name) for name in ("hidden_size", "intermediate_size")},
                "expert": {name: getattr(expert, name) for name in ("hidden_size", "intermediate_size")},
                **{name: getattr(language, name) for name in _SIZES},
                "state_size": config.max_state_dim,
            }
        )
    except ValueError as error:
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


def load_pi0(folder: Path, dtype: torch.dtype | None = None) -> Pi0Backbone:
    """The backbone of a π0 checkpoint, at its own resolution, in evaluation mode.

    Args:
        folder: holds config.json and safetensors.
        dtype: of the parameters; by default as they are stored.

    Raises:
        InputError: as `read_settings`; one line that lists the tensors that are missing, unexpected or of a wrong shape.
    """
    tensor_files(folder)  # safetensors or nothing
    settings = read_settings(folder)
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
    backbone = without_memory(partial(Pi0Backbone, settings))
    backbone.model = loaded.model
    backbone.model.dit.register_module("embed_tokens", torch.nn.Identity())
    backbone.state_proj = loaded.embed_action_time.state_proj
    return backbone.eval()
