"""The multiscale pixel-aware encoder: a mask p becomes one or more tokens, E_p = MLP(Σ_i Γ_i(mean of level i under p)).

Low levels of the vision tower still know edges and texture, high ones know what a thing is; averaging each under the mask
and adding their projections gives the language model the object itself instead of the words for it.
"""

from collections.abc import Sequence

import torch
from torch import nn


class PixelAwareEncoder(nn.Module):
    """Masks and patch features of several levels of the vision tower -> tokens of the language model."""

    def __init__(
        self, level_sizes: Sequence[int], hidden_size: int, tokens_per_mask: int = 1, norms: bool = False
    ) -> None:
        """Build it with random weights.

        Args:
            level_sizes: channels of each level of the vision tower, low to high.
            hidden_size: the width D of the language model.
            tokens_per_mask: N_p.
            norms: normalise each level's patch features first, so that none outweighs the others by its size.
        """
        super().__init__()
        self.tokens_per_mask = tokens_per_mask
        self.level_norms = nn.ModuleList(nn.LayerNorm(size) if norms else nn.Identity() for size in level_sizes)
        self.level_projections = nn.ModuleList(nn.Linear(size, hidden_size) for size in level_sizes)  # Γ_i
        self.token_mlp = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, tokens_per_mask * hidden_size)
        )
        self.null_tokens = nn.Parameter(
            torch.randn(tokens_per_mask, hidden_size) * 0.02
        )  # about as large as word embeddings

    def forward(self, levels: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """Encode masks to tokens of the language model.

        Args:
            levels: for each level, patch features (batch, patches, channels), patches row by row.
            weights: float (batch, masks, patches), the share of each patch that the mask covers, or the weight of each
                under a prompt (`model.patch_weights`). All zeros stand for an empty mask, no mask, or padding.

        Returns:
            (batch, masks, tokens_per_mask, D); the learned null tokens where the weights are all zero.

        Raises:
            ValueError: there are more or fewer levels than at the start.
        """
        areas = weights.float().sum(-1, keepdim=True)
        shares = (weights / areas.clamp(min=torch.finfo(torch.float32).tiny)).to(self.null_tokens.dtype)
        summed = sum(
            projection(torch.bmm(shares, norm(level.to(shares.dtype))))
            for projection, norm, level in zip(self.level_projections, self.level_norms, levels, strict=True)
        )
        tokens = self.token_mlp(summed).unflatten(-1, self.null_tokens.shape)
        return torch.where(areas[..., None] > 0, tokens, self.null_tokens)
