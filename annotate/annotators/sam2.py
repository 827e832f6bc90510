"""What this project changes in transformers' SAM 2: work that is thrown away, made again for every frame, or slow on a GPU.

On a CPU all numbers stay those of transformers, bit by bit.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleAttention, do_pool
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoLayerNorm

from annotate.annotators.device import full_precision


def adapt(model: Any, device: str) -> None:
    """Change a `Sam2VideoModel` that is on this device already; its weights stay as they are."""
    backbone = model.vision_encoder.backbone
    backbone._get_pos_embed = lru_cache(maxsize=1)(backbone._get_pos_embed)
    for encoder in (model.vision_encoder.neck, model.memory_encoder):
        encoder.position_encoding.forward = _made_once(encoder.position_encoding)
    # In bfloat16 a coordinate would be off by up to two of 1,024 pixels.
    for embedding in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
        embedding.forward = full_precision(device)(embedding.forward)
    if device == "cpu":
        # Their inputs lie channels last, and torch would bring the weights into that order at every call.
        for layer in model.memory_encoder.mask_downsampler.layers[1:]:
            layer.conv.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, Sam2MultiScaleAttention):
            _replace(module, _attended)
        elif isinstance(module, Sam2VideoLayerNorm) and module.data_format == "channels_first" and device != "cpu":
            _replace(module, _normalised)


def _replace(module: Any, forward: Callable[..., torch.Tensor]) -> None:
    """Let a function of the module and its inputs be its forward pass."""
    module.forward = partial(forward, module)


def _made_once(encoding: Any) -> Callable[..., torch.Tensor]:
    """The forward pass of a sine position encoding that makes the encoding of each image size once, in float32."""
    known: dict[Any, torch.Tensor] = {}

    def forward(shape: torch.Size, device: Any, dtype: torch.dtype, mask: None = None) -> torch.Tensor:
        key = *shape[1:], dtype
        if key not in known:
            one = torch.Size([1, *shape[1:]])
            known[key] = type(encoding).forward(encoding, one, device, torch.float32).to(dtype)
        return known[key].expand(shape[0], -1, -1, -1)

    return forward


def _attended(attention: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
    """The image encoder's attention, (windows, height, width, channels), without a softmax that transformers does not use."""
    windows, height, width, _channels = hidden_states.shape
    packed = attention.qkv(hidden_states).reshape(windows, height * width, 3, attention.num_attention_heads, -1)
    query, key, value = packed.unbind(2)
    if attention.query_stride:
        query = do_pool(query.reshape(windows, height, width, -1), attention.query_stride)
        height, width = query.shape[1:3]
        query = query.reshape(windows, height * width, attention.num_attention_heads, -1)
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    found = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    return attention.proj(found.transpose(1, 2).reshape(windows, height, width, -1))


def _normalised(norm: torch.nn.LayerNorm, features: torch.Tensor) -> torch.Tensor:
    """Layer norm over the channels of (images, channels, height, width), float32, where they lie.

    torch's own takes a block of a GPU for each pixel, and of the masks' features that is a million blocks for 4 numbers.
    """
    features = features.float()
    variance, mean = torch.var_mean(features, 1, correction=0, keepdim=True)
    weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
    return (features - mean) * (torch.rsqrt(variance + norm.eps) * weight) + bias
