"""OpenVLA's fused vision: every patch described by DINOv2 and by SigLIP, each as it leaves its second-to-last block.

Both towers are transformers' own. The published models' last blocks and final norms play no part in OpenVLA, so they are
not built (docs/model.md lists them).
"""

import math

import torch
from torch import nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.backbones.base import VisionOutput
from model.backbones.settings import FusedVisionSettings


class FusedVision(nn.Module):
    """DINOv2 with register tokens and SigLIP over the same image."""

    def __init__(self, settings: FusedVisionSettings) -> None:
        """Build both towers, without their last blocks and final norms, with random weights."""
        super().__init__()
        self.settings = settings
        tower = settings.dino
        self.dino = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=tower.hidden_size,
                mlp_ratio=tower.mlp_ratio,
                num_hidden_layers=tower.depth - 1,
                num_attention_heads=tower.heads,
                image_size=settings.image_size,
                patch_size=settings.patch_size,
                num_register_tokens=tower.register_tokens,
                hidden_act="gelu",
                layer_norm_eps=tower.layer_norm_eps,
                layerscale_value=1.0,
            )
        )
        self.siglip = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=settings.siglip.hidden_size,
                intermediate_size=settings.siglip.mlp_size,
                num_hidden_layers=settings.level_blocks,
                num_attention_heads=settings.siglip.heads,
                image_size=settings.image_size,
                patch_size=settings.patch_size,
                hidden_act="gelu",  # exact, as timm has it; transformers' default is the tanh form
                layer_norm_eps=settings.siglip.layer_norm_eps,
                vision_use_head=False,
            )
        )
        self.dino.embeddings.register_parameter("mask_token", None)  # of DINOv2's training; no patch is masked here
        self.dino.register_module("layernorm", nn.Identity())
        self.siglip.register_module("post_layernorm", nn.Identity())
        with torch.no_grad():
            self.dino.embeddings.position_embeddings[0, 1:] = sinusoidal_positions(
                settings.grid, settings.dino.hidden_size
            )
            self.siglip.embeddings.position_embedding.weight.copy_(
                sinusoidal_positions(settings.grid, settings.siglip.hidden_size)
            )

    def forward(self, pixel_values: torch.Tensor) -> VisionOutput:
        """Features of a batch of images.

        Args:
            pixel_values: (batch, 6, image_size, image_size): the RGB image normalised for DINOv2 (ImageNet's mean and
                deviation), then the same image normalised for SigLIP (0.5 and 0.5).

        Raises:
            ValueError: the pixels have another shape.
        """
        side = self.settings.image_size
        if pixel_values.shape[1:] != (6, side, side):
            raise ValueError(
                f"pixel_values must be (batch, 6, {side}, {side}): DINOv2's channels, then SigLIP's; "
                f"not {tuple(pixel_values.shape)}"
            )
        first = 1 + self.settings.dino.register_tokens  # the class token and the registers come first
        dino = self.dino(pixel_values=pixel_values[:, :3]).last_hidden_state[:, first:]
        siglip = self.siglip(pixel_values=pixel_values[:, 3:], output_hidden_states=True)
        blocks = siglip.hidden_states[1:]  # the first is what enters the first block
        return VisionOutput(
            patch_features=torch.cat([dino, siglip.last_hidden_state], dim=-1),
            levels=[blocks[level] for level in self.settings.levels],
        )


def sinusoidal_positions(grid: int, channels: int) -> torch.Tensor:
    """Position embeddings for training from scratch, (grid * grid, channels): sines and cosines of x, then of y, row by row.

    The waves go from a quarter turn per image to a quarter turn per patch. Random embeddings are faint beside the patches, and a
    small policy trained from scratch takes long to learn where things are.
    """
    centres = (torch.arange(grid) + 0.5) / grid
    turns = torch.logspace(0, math.log2(grid), -(-channels // 4), base=2.0) * math.pi / 2
    line = torch.cat([torch.sin(centres[:, None] * turns), torch.cos(centres[:, None] * turns)], dim=1)
    both = torch.cat([line.expand(grid, -1, -1), line[:, None].expand(-1, grid, -1)], dim=-1)
    return both.flatten(0, 1)[:, :channels]


def resize_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embeddings of a square grid of patches, interpolated to another: (old * old, channels) -> (grid * grid, channels).

    Bicubic with antialiasing, in float32, as timm does when a model is loaded at another resolution.
    """
    old = math.isqrt(len(positions))
    square = positions.float().unflatten(0, (old, old)).permute(2, 0, 1)[None]
    resized = nn.functional.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    return resized[0].flatten(1).T.to(positions.dtype).contiguous()
