"""The visual prompt-aware encoder: one token per prompt, whether point, line, region or mask, in the manner of SAM's.

Every prompt is a set of points on the image, so one rule serves all kinds: Fourier encodings of the points and an embedding
of the kind, a layer, the mean over the points, an MLP. A line is its points, a region its two corners, a mask the centres of
the cells of a grid: each cell is weighted by how much of it the mask covers and described by a stack of convolutions.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from pixel160k.format.prompts import PROMPT_KINDS

MASK_CELL = 4  # side of a cell in pixels of a dense mask: two convolutions of stride 2, as in SAM
_OCTAVES = 8  # the finest wave is 1/64 of the image long: 3.5 pixels at 224
_WIDTH = 256  # of the encodings, as SAM's


class PromptBatch(NamedTuple):
    """Prompts as tensors, padded. One without points and with an empty mask stands for no prompt: padding, or none given.

    Attributes:
        kinds: int64 (batch, prompts), indices into `PROMPT_KINDS`.
        points: float32 (batch, prompts, points, 2): x and y as shares of the width and height of what the model sees.
        point_used: bool (batch, prompts, points): which points are not padding; none of a mask's.
        masks: float32 (batch, prompts, side, side) in [0, 1]: the dense mask of a prompt of kind "mask", zeros for the
            others; side is a multiple of `MASK_CELL`. Side 0 where the whole batch has none.
    """

    kinds: torch.Tensor
    points: torch.Tensor
    point_used: torch.Tensor
    masks: torch.Tensor


def mask_prompts(masks: torch.Tensor) -> PromptBatch:
    """Dense masks, (batch, masks, side, side), as prompts of kind "mask"."""
    shape = masks.shape[:2]
    return PromptBatch(
        torch.full(shape, PROMPT_KINDS.index("mask"), device=masks.device),
        torch.zeros(*shape, 0, 2, device=masks.device),
        torch.zeros(*shape, 0, dtype=torch.bool, device=masks.device),
        masks,
    )


class PromptEncoder(nn.Module):
    """Prompts of any number and mixture -> tokens of the language model; no prompt sees another."""

    def __init__(self, hidden_size: int) -> None:
        """`hidden_size`: the width D of the language model."""
        super().__init__()
        self.point_projection = nn.Linear(4 * _OCTAVES, _WIDTH)
        self.kind_embeddings = nn.Embedding(len(PROMPT_KINDS), _WIDTH)
        # So that where weighs as much as what: embeddings vary by 1.
        nn.init.normal_(self.point_projection.weight, std=0.5)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, _WIDTH // 16, 2, stride=2), nn.GroupNorm(1, _WIDTH // 16), nn.GELU(),
            nn.Conv2d(_WIDTH // 16, _WIDTH // 4, 2, stride=2), nn.GroupNorm(1, _WIDTH // 4), nn.GELU(),
            nn.Conv2d(_WIDTH // 4, _WIDTH, 1),
        )  # fmt: skip
        self.token_mlp = nn.Sequential(nn.Linear(_WIDTH, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.null_token = nn.Parameter(torch.randn(hidden_size) * 0.02)  # about as large as word embeddings

    def forward(self, prompts: PromptBatch) -> torch.Tensor:
        """Encode prompts to tokens of the language model, (batch, prompts, D); no prompt becomes the learned null token."""
        kinds = self.kind_embeddings(prompts.kinds)[..., None, :]
        weights = prompts.point_used[..., None].to(kinds.dtype)
        encoded = F.gelu(self.point_projection(fourier_features(prompts.points).to(kinds.dtype)) + kinds)
        total, weight = (weights * encoded).sum(2), weights.sum(2)
        if prompts.masks.shape[-1]:
            coverage = F.avg_pool2d(prompts.masks.to(kinds.dtype), MASK_CELL).flatten(2)[..., None]
            dense = F.gelu(self._encode_cells(prompts.masks.to(kinds.dtype)) + kinds)
            total, weight = total + (coverage * dense).sum(2), weight + coverage.sum(2)
        tokens = self.token_mlp(total / torch.where(weight > 0, weight, 1))
        return torch.where(weight > 0, tokens, self.null_token)

    def _encode_cells(self, masks: torch.Tensor) -> torch.Tensor:
        """Where each cell of dense masks is, and the shape of the mask in it: (batch, prompts, cells, _WIDTH)."""
        side = masks.shape[-1] // MASK_CELL
        steps = (torch.arange(side, device=masks.device) + 0.5) / side
        centres = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)
        shapes = self.mask_downscaling(masks.flatten(0, 1)[:, None]).flatten(2).transpose(1, 2)
        return self.point_projection(fourier_features(centres).to(masks.dtype)) + shapes.unflatten(0, masks.shape[:2])


def fourier_features(points: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of coordinates (..., 2) in [0, 1], at octaves from half a period per image: float32 (..., 32).

    The finer a wave, the lower it is. At equal heights the last few pixels would make three quarters of what is seen of a
    point, and would drown in which half of the image it lies. Nothing is learned or drawn, and all is computed in float32,
    so that a bfloat16 model still tells pixels apart.
    """
    octaves = 2.0 ** torch.arange(_OCTAVES, device=points.device)
    phases = points.float()[..., None] * math.pi * octaves
    waves = torch.cat([phases.sin(), phases.cos()], dim=-2) / octaves.sqrt()
    return waves.flatten(-2)
