"""The visual prompt-aware encoder: one token a prompt, whether point, line, region or mask, in the manner of SAM's.

Every kind is a set of places on the image, so one rule serves all: Fourier encodings of the places and an embedding of the
kind, a layer, the mean over the places, an MLP. A point is one place, a line its points, a region its two corners, a mask
the cells of a grid weighted by how much of each it covers, with what a stack of convolutions says of its shape.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from pixel160k.format.prompts import PROMPT_KINDS

MASK_CELL = 4  # pixels of a dense mask a cell and side: two convolutions of stride 2, as in SAM
_OCTAVES = 8  # the finest wave is 1/64 of the image long: 3.5 pixels at 224
_WIDTH = 256  # of the encodings, as SAM's


class PromptBatch(NamedTuple):
    """Prompts as tensors, padded. A prompt without any place, or an empty mask, is no prompt: padding, or none given.

    Attributes:
        kinds: int64 (batch, prompts), numbers in `PROMPT_KINDS`.
        places: float32 (batch, prompts, places, 2): x and y as shares of the width and height of what the model sees.
        present: bool (batch, prompts, places): which places are not padding; none for a mask.
        masks: float32 (batch, prompts, side, side) in [0, 1]: the dense mask of a prompt of kind "mask", zeros for the
            others; side is a multiple of `MASK_CELL`. Side 0 where the whole batch has none.
    """

    kinds: torch.Tensor
    places: torch.Tensor
    present: torch.Tensor
    masks: torch.Tensor


class PromptEncoder(nn.Module):
    """Prompts of any number and mixture -> tokens of the language model; no prompt sees another."""

    def __init__(self, hidden_size: int) -> None:
        """`hidden_size`: the width D of the language model."""
        super().__init__()
        self.place = nn.Linear(4 * _OCTAVES, _WIDTH)
        self.kind = nn.Embedding(len(PROMPT_KINDS), _WIDTH)
        nn.init.normal_(self.place.weight, std=0.5)  # so that where weighs as much as what, whose embedding varies by 1
        self.shape = nn.Sequential(
            nn.Conv2d(1, _WIDTH // 16, 2, stride=2), nn.GroupNorm(1, _WIDTH // 16), nn.GELU(),
            nn.Conv2d(_WIDTH // 16, _WIDTH // 4, 2, stride=2), nn.GroupNorm(1, _WIDTH // 4), nn.GELU(),
            nn.Conv2d(_WIDTH // 4, _WIDTH, 1),
        )  # fmt: skip
        self.mlp = nn.Sequential(nn.Linear(_WIDTH, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.null = nn.Parameter(torch.randn(hidden_size) * 0.02)  # about as large as word embeddings

    def forward(self, prompts: PromptBatch) -> torch.Tensor:
        """Encode prompts to (batch, prompts, D); the learned null token where there is none."""
        kinds = self.kind(prompts.kinds)[..., None, :]
        weights = prompts.present[..., None].to(kinds.dtype)
        encoded = F.gelu(self.place(fourier(prompts.places).to(kinds.dtype)) + kinds)
        total, weight = (weights * encoded).sum(2), weights.sum(2)
        if prompts.masks.shape[-1]:
            coverage = F.avg_pool2d(prompts.masks.to(kinds.dtype), MASK_CELL).flatten(2)[..., None]
            dense = F.gelu(self._cells(prompts.masks.to(kinds.dtype)) + kinds)
            total, weight = total + (coverage * dense).sum(2), weight + coverage.sum(2)
        tokens = self.mlp(total / torch.where(weight > 0, weight, 1))
        return torch.where(weight > 0, tokens, self.null)

    def _cells(self, masks: torch.Tensor) -> torch.Tensor:
        """What is known of each cell of dense masks, place and shape: (batch, prompts, cells, width)."""
        side = masks.shape[-1] // MASK_CELL
        centres = (torch.arange(side, device=masks.device) + 0.5) / side
        places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).flatten(0, 1)
        shape = self.shape(masks.flatten(0, 1)[:, None]).flatten(2).transpose(1, 2)
        return self.place(fourier(places).to(masks.dtype)) + shape.unflatten(0, masks.shape[:2])


def fourier(places: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of coordinates (..., 2) at octaves of half a period an image: float32 (..., 32).

    The finer a wave, the lower: at equal heights three quarters of what is seen of a place would be its last few pixels, and
    that which half of the image it is in would drown. Nothing is learned or drawn, and all is computed in float32, so that a
    bfloat16 model still tells pixels apart.
    """
    octaves = 2.0 ** torch.arange(_OCTAVES, device=places.device)
    phases = places.float()[..., None] * math.pi * octaves
    waves = torch.cat([phases.sin(), phases.cos()], dim=-2) / octaves.sqrt()
    return waves.flatten(-2)
