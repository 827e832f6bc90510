"""OpenVLA's published checkpoints: their config.json as settings, and which of their tensors each parameter comes from.

The towers are named as timm names them, with LayerScale as `scale_factor` (OpenVLA's renaming); docs/model.md has the table.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.backbones.settings import OPENVLA_7B, LlamaSettings, OpenVLASettings, spread_levels
from model.weights import TensorSource
from pixel160k.errors import InputError
from pixel160k.files import read_json_object

_MODEL = {  # what this implementation computes; a config.json that says otherwise is refused
    "model_type": "openvla",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "use_fused_vision_backbone": True,
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
    "image_resize_strategy": "resize-naive",
    "quantization_config": None,
}
_BY_VISION = {  # what OpenVLA's own code takes from vision_backbone_id, where config.json does not say it
    "dinosiglip-vit-so-224px": {
        "image_sizes": 224,
        **{name: _MODEL[name] for name in ("use_fused_vision_backbone", "timm_model_ids", "timm_override_act_layers")},
    }
}
_LANGUAGE = {  # what config.json leaves out where it holds
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
}

_DINO, _SIGLIP = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"

# The layers of a block, each with weight and bias: timm's name, ours. A fused layer is split by rows.
_DINO_BLOCK = {
    "norm1": ["norm1"],
    "attn.qkv": ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    "attn.proj": ["attention.o_proj"],
    "norm2": ["norm2"],
    "mlp.fc1": ["mlp.fc1"],
    "mlp.fc2": ["mlp.fc2"],
}
_SIGLIP_BLOCK = {
    "norm1": ["layer_norm1"],
    "attn.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.proj": ["self_attn.out_proj"],
    "norm2": ["layer_norm2"],
    "mlp.fc1": ["mlp.fc1"],
    "mlp.fc2": ["mlp.fc2"],
}
_ATTENTION_POOL = ["q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2"]


def read_settings(folder: Path) -> OpenVLASettings:
    """The sizes of an OpenVLA checkpoint.

    config.json names the towers by timm's ids, which imply their sizes; a `dims.json` beside it may give others.

    Raises:
        InputError: a file cannot be read, or describes a model that this implementation does not compute.
    """
    file = folder / "config.json"
    config = read_json_object(file)
    config = _BY_VISION.get(str(config.get("vision_backbone_id")), {}) | config
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        raise InputError(f"{file}: text_config must hold the settings of a Llama, not {text!r}")
    text = {name: value for name, value in text.items() if value is not None}  # null is what stands there by default
    for found, fixed in ((config, _MODEL), ({**_LANGUAGE, **text}, _LANGUAGE)):
        for name, value in fixed.items():
            if found.get(name) != value:
                raise InputError(f"{file}: {name} must be {value!r}, not {found.get(name)!r}")
    vision = OPENVLA_7B.vision.model_dump()
    if (folder / "dims.json").is_file():
        dims = read_json_object(folder / "dims.json")
        dino, siglip = dims.get("featurizer", {}), dims.get("fused_featurizer", {})
        if not isinstance(dino, dict) or not isinstance(siglip, dict):
            raise InputError(
                f"{folder / 'dims.json'}: featurizer and fused_featurizer must hold the sizes of a tower each"
            )
        vision["patch_size"] = dino.get("patch_size")
        vision["dino"] = {**_tower(dino), "register_tokens": dino.get("num_register_tokens")}
        vision["siglip"] = _tower(siglip)
    vision["image_size"] = _image_size(config.get("image_sizes"), file)
    depth = vision["siglip"]["depth"]
    vision["levels"] = spread_levels(depth - 1) if isinstance(depth, int) and depth > 1 else (0,)
    language = {"pad_token_id": config.get("pad_token_id"), **text, "rope_theta": _rope_theta(text, file)}
    language.setdefault("num_key_value_heads", text.get("num_attention_heads", 32))
    language = {name: value for name, value in language.items() if name in LlamaSettings.model_fields}
    try:
        settings = OpenVLASettings.load(base={"vision": vision, "language": language})
    except InputError as error:
        raise InputError(f"{folder}: config.json and dims.json: {error}") from None
    head = settings.language.hidden_size // settings.language.num_attention_heads
    if text.get("head_dim", head) != head:
        raise InputError(
            f"{file}: head_dim must be {head}, hidden_size / num_attention_heads, not {text['head_dim']!r}"
        )
    return settings


def _image_size(given: Any, file: Path) -> Any:
    """Pixels per side from `image_sizes`: a number, or one for each tower, which must be the same."""
    sizes = given if isinstance(given, list) and given else [given]
    if not all(isinstance(size, int) and size == sizes[0] for size in sizes):
        raise InputError(f"{file}: image_sizes must be pixels per side, the same for both towers, not {given!r}")
    return sizes[0]


def _rope_theta(text: dict[str, Any], file: Path) -> Any:
    """The base of the rotary positions, however it is spelled: as `rope_theta`, or within what transformers 5 writes.

    Raises:
        InputError: the positions are scaled, or there are two bases.
    """
    spelled = [text]
    for name in ("rope_scaling", "rope_parameters"):
        if (given := text.get(name)) is None:
            continue
        kept = given.items() if isinstance(given, dict) else [("", given)]
        if any(key != "rope_theta" and (key not in ("rope_type", "type") or value != "default") for key, value in kept):
            raise InputError(f"{file}: {name} must be of the type default, unscaled positions, not {given!r}")
        spelled.append(given)
    bases = [each["rope_theta"] for each in spelled if each.get("rope_theta") is not None]
    if any(base != bases[0] for base in bases):
        raise InputError(f"{file}: rope_theta must be one number, not {' and '.join(map(repr, bases))}")
    return bases[0] if bases else LlamaSettings.model_fields["rope_theta"].default


def _tower(dims: dict[str, Any]) -> dict[str, Any]:
    names = {"hidden_size": "embed_dim", "depth": "depth", "heads": "num_heads"}
    optional = {name: dims[name] for name in ("mlp_ratio", "layer_norm_eps") if name in dims}
    return {ours: dims.get(theirs) for ours, theirs in names.items()} | optional


def tensor_sources(backbone: nn.Module, settings: OpenVLASettings) -> dict[str, TensorSource]:
    """Which tensor of an OpenVLA checkpoint each parameter of an `OpenVLABackbone` of these sizes comes from, by its name."""
    shapes = {name: tuple(parameter.shape) for name, parameter in backbone.named_parameters()}
    # The projector and the Llama have OpenVLA's own names.
    found = {
        name: TensorSource(name, shape) for name, shape in shapes.items() if not name.startswith("vision_backbone.")
    }

    def add(theirs: str, ours: list[str]) -> None:
        for part, name in enumerate(ours):
            rows, *others = shapes[name]
            found[name] = TensorSource(theirs, (rows * len(ours), *others), partial(_rows, part=part, parts=len(ours)))

    def add_layer(theirs: str, ours: list[str]) -> None:
        add(f"{theirs}.weight", [f"{name}.weight" for name in ours])
        add(f"{theirs}.bias", [f"{name}.bias" for name in ours])

    vision = settings.vision
    patches = vision.grid**2

    dino = "vision_backbone.dino"
    add(f"{_DINO}.cls_token", [f"{dino}.embeddings.cls_token"])
    add(f"{_DINO}.reg_token", [f"{dino}.embeddings.register_tokens"])
    add_layer(f"{_DINO}.patch_embed.proj", [f"{dino}.embeddings.patch_embeddings.projection"])
    found[f"{dino}.embeddings.position_embeddings"] = TensorSource(
        f"{_DINO}.pos_embed", (1, patches, vision.dino.hidden_size), _with_class_row
    )
    for block in range(vision.dino.depth - 1):
        for theirs, ours in _DINO_BLOCK.items():
            add_layer(f"{_DINO}.blocks.{block}.{theirs}", [f"{dino}.encoder.layer.{block}.{name}" for name in ours])
        for scale in (1, 2):
            add(
                f"{_DINO}.blocks.{block}.ls{scale}.scale_factor",
                [f"{dino}.encoder.layer.{block}.layer_scale{scale}.lambda1"],
            )

    siglip = "vision_backbone.siglip"
    add_layer(f"{_SIGLIP}.patch_embed.proj", [f"{siglip}.embeddings.patch_embedding"])
    found[f"{siglip}.embeddings.position_embedding.weight"] = TensorSource(
        f"{_SIGLIP}.pos_embed", (1, patches, vision.siglip.hidden_size), _without_batch
    )
    for block in range(vision.siglip.depth - 1):
        for theirs, ours in _SIGLIP_BLOCK.items():
            add_layer(
                f"{_SIGLIP}.blocks.{block}.{theirs}", [f"{siglip}.encoder.layers.{block}.{name}" for name in ours]
            )
    return found


def _rows(tensor: torch.Tensor, part: int, parts: int) -> torch.Tensor:
    return tensor.chunk(parts)[part]


def _with_class_row(positions: torch.Tensor) -> torch.Tensor:
    # The class token has no position here (timm's no_embed_class): zeros in the row that transformers keeps for it.
    return torch.nn.functional.pad(positions, (0, 0, 1, 0))


def _without_batch(positions: torch.Tensor) -> torch.Tensor:
    return positions[0]


def unused_tensors(settings: OpenVLASettings) -> set[str]:
    """The tensors of an OpenVLA checkpoint that play no part: all that comes after the features of the two towers."""
    last_dino = f"{_DINO}.blocks.{settings.vision.dino.depth - 1}"
    last_siglip = f"{_SIGLIP}.blocks.{settings.vision.siglip.depth - 1}"
    layers = [
        *(f"{last_dino}.{layer}" for layer in _DINO_BLOCK),
        f"{_DINO}.norm",
        *(f"{last_siglip}.{layer}" for layer in _SIGLIP_BLOCK),
        f"{_SIGLIP}.norm",
        *(f"{_SIGLIP}.attn_pool.{layer}" for layer in _ATTENTION_POOL),
    ]
    alone = [f"{last_dino}.ls1.scale_factor", f"{last_dino}.ls2.scale_factor", f"{_SIGLIP}.attn_pool.latent"]
    return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | set(alone)
