"""OpenVLA's checkpoint format and its computation, written from timm's and Llama's structure alone.

Nothing here uses the package: it is what the package is compared with. `compute` is itself compared with the outputs of
the original code (test_openvla_parity.py) before fixtures of other sizes are made with it.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file


@dataclass(frozen=True)
class Tower:
    size: int
    depth: int
    heads: int
    mlp_ratio: float


@dataclass(frozen=True)
class Sizes:
    """A whole OpenVLA; the defaults are openvla-7b."""

    image: int = 224
    patch: int = 14
    registers: int = 4
    dino: Tower = Tower(1024, 24, 16, 4.0)
    siglip: Tower = Tower(1152, 27, 16, 3.7362)
    hidden: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp: int = 11008
    vocab: int = 32064
    pad: int = 32000
    statistics: dict = field(default_factory=dict)

    @property
    def patches(self):
        return (self.image // self.patch) ** 2


def linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name, size):
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def tower(name, shape, patch, patches, dino, registers=0):
    """timm's VisionTransformer: DINOv2 with registers and LayerScale, or SigLIP with an attention pool."""
    size, mlp = shape.size, int(shape.size * shape.mlp_ratio)
    found = {f"{name}.pos_embed": (1, patches, size)}  # no position for the class token and the registers
    found |= {f"{name}.patch_embed.proj.weight": (size, 3, patch, patch), f"{name}.patch_embed.proj.bias": (size,)}
    for block in range(shape.depth):
        inside = f"{name}.blocks.{block}"
        found |= norm(f"{inside}.norm1", size) | norm(f"{inside}.norm2", size)
        found |= linear(f"{inside}.attn.qkv", 3 * size, size) | linear(f"{inside}.attn.proj", size, size)
        found |= linear(f"{inside}.mlp.fc1", mlp, size) | linear(f"{inside}.mlp.fc2", size, mlp)
        if dino:
            found |= {f"{inside}.ls1.scale_factor": (size,), f"{inside}.ls2.scale_factor": (size,)}
    found |= norm(f"{name}.norm", size)
    if dino:
        return found | {f"{name}.cls_token": (1, 1, size), f"{name}.reg_token": (1, registers, size)}
    pool = f"{name}.attn_pool"
    found |= {f"{pool}.latent": (1, 1, size)} | linear(f"{pool}.q", size, size) | linear(f"{pool}.kv", 2 * size, size)
    found |= linear(f"{pool}.proj", size, size) | norm(f"{pool}.norm", size)
    return found | linear(f"{pool}.mlp.fc1", mlp, size) | linear(f"{pool}.mlp.fc2", size, mlp)


def tensors(sizes):
    """Name and shape of every tensor of the checkpoint."""
    found = tower(
        "vision_backbone.featurizer", sizes.dino, sizes.patch, sizes.patches, dino=True, registers=sizes.registers
    )
    found |= tower("vision_backbone.fused_featurizer", sizes.siglip, sizes.patch, sizes.patches, dino=False)
    channels = sizes.dino.size + sizes.siglip.size
    found |= linear("projector.fc1", 4 * channels, channels) | linear("projector.fc2", sizes.hidden, 4 * channels)
    found |= linear("projector.fc3", sizes.hidden, sizes.hidden)
    head = sizes.hidden // sizes.heads
    found |= {"language_model.model.embed_tokens.weight": (sizes.vocab, sizes.hidden)}
    for layer in range(sizes.layers):
        inside = f"language_model.model.layers.{layer}"
        for name, rows in {"q": sizes.heads, "k": sizes.kv_heads, "v": sizes.kv_heads}.items():
            found[f"{inside}.self_attn.{name}_proj.weight"] = (rows * head, sizes.hidden)
        found[f"{inside}.self_attn.o_proj.weight"] = (sizes.hidden, sizes.heads * head)
        for name in ("gate", "up"):
            found[f"{inside}.mlp.{name}_proj.weight"] = (sizes.mlp, sizes.hidden)
        found[f"{inside}.mlp.down_proj.weight"] = (sizes.hidden, sizes.mlp)
        found[f"{inside}.input_layernorm.weight"] = (sizes.hidden,)
        found[f"{inside}.post_attention_layernorm.weight"] = (sizes.hidden,)
    found["language_model.model.norm.weight"] = (sizes.hidden,)
    return found | {"language_model.lm_head.weight": (sizes.vocab, sizes.hidden)}


def attend(q, k, v, mask=None):
    """Plain attention over (batch, heads, length, channels)."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1).nan_to_num() @ v


def see(weights, name, shape, images, patch, mistake):
    """What a tower's second-to-last block gives for its patches."""
    take = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
    gelu = "tanh" if mistake == "tanh GELU" else "none"
    eps = 1e-5 if mistake == "norm eps" else 1e-6
    x = F.conv2d(images, take["patch_embed.proj.weight"], take["patch_embed.proj.bias"], stride=patch)
    x = (x.transpose(2, 3) if mistake == "transposed grid" else x).flatten(2).transpose(1, 2) + take["pos_embed"]
    first = [take[key].expand(len(x), -1, -1) for key in ("cls_token", "reg_token") if key in take]
    x = torch.cat([*first, x], dim=1)
    for block in range(shape.depth if mistake == "last block" else shape.depth - 1):
        w = {key.removeprefix(f"blocks.{block}."): value for key, value in take.items()}
        y = F.layer_norm(x, (shape.size,), w["norm1.weight"], w["norm1.bias"], eps)
        y = F.linear(y, w["attn.qkv.weight"], w["attn.qkv.bias"]).unflatten(-1, (3, shape.heads, -1))
        q, k, v = y.permute(2, 0, 3, 1, 4)
        y = attend(k, q, v) if mistake == "q and k swapped" else attend(q, k, v)
        y = F.linear(y.transpose(1, 2).flatten(2), w["attn.proj.weight"], w["attn.proj.bias"])
        x = x + y * w.get("ls1.scale_factor", 1.0)
        y = F.layer_norm(x, (shape.size,), w["norm2.weight"], w["norm2.bias"], eps)
        y = F.gelu(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]), approximate=gelu)
        x = x + F.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"]) * w.get("ls2.scale_factor", 1.0)
    if mistake == "final norm":
        x = F.layer_norm(x, (shape.size,), take["norm.weight"], take["norm.bias"], eps)
    return x[:, -(images.shape[-1] ** 2) // patch**2 :]


def rms(x, weight):
    return weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def turn(x, base=10000.0):
    """Rotary positions 0, 1, 2 ... of (batch, heads, length, channels)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * base ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def compute(weights, sizes, pixel_values, input_ids, attention_mask, mistake=""):
    """The four outputs of OpenVLA, from tensors under their original names; `mistake` makes one on purpose."""
    dino = see(weights, "vision_backbone.featurizer", sizes.dino, pixel_values[:, :3], sizes.patch, mistake)
    siglip = see(weights, "vision_backbone.fused_featurizer", sizes.siglip, pixel_values[:, 3:], sizes.patch, mistake)
    patch_features = projected = torch.cat([dino, siglip], dim=-1)
    for layer in (1, 2, 3):
        projected = F.gelu(projected) if layer > 1 else projected
        projected = F.linear(projected, weights[f"projector.fc{layer}.weight"], weights[f"projector.fc{layer}.bias"])
    text = weights["language_model.model.embed_tokens.weight"][input_ids]
    x = torch.cat([text[:, :1], projected, text[:, 1:]], dim=1)
    seen = torch.ones(projected.shape[:2], dtype=torch.bool)
    mask = torch.cat([attention_mask[:, :1].bool(), seen, attention_mask[:, 1:].bool()], dim=1)
    length, head = x.shape[1], sizes.hidden // sizes.heads
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None, :]
    for layer in range(sizes.layers):
        start = f"language_model.model.layers.{layer}."
        w = {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
        y = rms(x, w["input_layernorm.weight"])
        q, k, v = (
            F.linear(y, w[f"self_attn.{name}_proj.weight"]).unflatten(-1, (-1, head)).transpose(1, 2) for name in "qkv"
        )
        k, v = (each.repeat_interleave(sizes.heads // sizes.kv_heads, dim=1) for each in (k, v))
        y = attend(turn(q), turn(k), v, allowed).transpose(1, 2).flatten(2)
        x = x + F.linear(y, w["self_attn.o_proj.weight"])
        y = rms(x, w["post_attention_layernorm.weight"])
        y = F.silu(F.linear(y, w["mlp.gate_proj.weight"])) * F.linear(y, w["mlp.up_proj.weight"])
        x = x + F.linear(y, w["mlp.down_proj.weight"])
    hidden = rms(x, weights["language_model.model.norm.weight"])
    logits = F.linear(hidden, weights["language_model.lm_head.weight"])
    return {"patch_features": patch_features, "projected": projected, "last_hidden_state": hidden, "logits": logits}


def configuration(sizes):
    """config.json as OpenVLA writes it."""
    return {
        "arch_specifier": "no-align+fused-gelu-mlp",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"},
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [sizes.image, sizes.image],
        "llm_backbone_id": "llama2-7b-pure",
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": sizes.statistics,
        "pad_to_multiple_of": 64,
        "pad_token_id": sizes.pad,
        "text_config": {
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.mlp,
            "model_type": "llama",
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.layers,
            "num_key_value_heads": sizes.kv_heads,
            "pad_token_id": sizes.pad,
            "vocab_size": sizes.vocab,
        },
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
    }


def dimensions(sizes):
    """dims.json as the fixture has it: the sizes of the towers."""

    def one(shape, registers):
        return {
            "patch_size": sizes.patch,
            "embed_dim": shape.size,
            "depth": shape.depth,
            "num_heads": shape.heads,
            "mlp_ratio": shape.mlp_ratio,
            "layer_norm_eps": 1e-6,
            "num_register_tokens": registers,
        }

    return {"featurizer": one(sizes.dino, sizes.registers), "fused_featurizer": one(sizes.siglip, 0)}


def random_weights(sizes, seed=0):
    """Random tensors whose features neither vanish nor explode, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tensors(sizes).items():
        drawn = torch.randn(shape, generator=generator)
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        scale_like = "norm" in name and name.endswith("weight")
        weights[name] = 1 + 0.2 * drawn if scale_like else drawn * (fan_in**-0.5 if len(shape) == 2 else 0.3)
    return weights


def write_checkpoint(folder, sizes, weights, shards=1):
    """config.json, dims.json and safetensors, sharded with an index as `save_pretrained` does."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configuration(sizes)))
    (folder / "dims.json").write_text(json.dumps(dimensions(sizes)))
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    index = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
