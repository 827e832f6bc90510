"""The continuous action decoder: learned queries at the end of the sequence, and what makes actions of their hidden states.

It takes the place of OpenVLA's 256 bins per dimension: one forward pass gives a whole chunk of actions, trained by L1.
"""

import torch
from torch import nn

from pixel160k.format.actions import ACTION_DIMENSIONS


class ActionDecoder(nn.Module):
    """N_c queries for the language model; a linear projector, N_r residual blocks and an MLP for their hidden states."""

    def __init__(self, hidden_size: int, width: int, chunk: int, blocks: int, norm: bool = False) -> None:
        """Build it with random weights.

        Args:
            hidden_size: width of the queries and of their hidden states.
            width: of the blocks.
            chunk: N_c, actions predicted at once.
            blocks: N_r, residual blocks.
            norm: normalise the hidden states before the projector.
        """
        super().__init__()
        self.queries = nn.Parameter(torch.randn(chunk, hidden_size) * 0.02)  # about as large as word embeddings
        self.norm = nn.LayerNorm(hidden_size) if norm else nn.Identity()
        self.projector = nn.Linear(hidden_size, width)
        self.blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(blocks))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, ACTION_DIMENSIONS)
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Last hidden states at the queries, (batch, N_c, hidden_size) -> normalised actions (batch, N_c, 7)."""
        hidden = self.projector(self.norm(hidden_states.to(self.projector.weight.dtype)))
        for block in self.blocks:
            hidden = block(hidden)
        return self.mlp(hidden)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.layers(hidden)


def l1_loss(predicted: torch.Tensor, actions: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
    """The mean absolute error over the dimensions of those actions that are the episode's own.

    Dimensions 0 to 5 are scaled to [−1, 1] and the gripper is in [0, 1], as in OpenVLA's data; none is weighted, so the
    gripper's whole range counts half of another dimension's.

    Args:
        predicted: (batch, N_c, 7).
        actions: float32 (batch, N_c, 7), normalised by `pixel160k.format.actions.normalise`.
        action_mask: bool (batch, N_c), false for steps past the episode's end (`pixel160k.format.actions.chunk_mask`).
    """
    errors = (predicted.float() - actions).abs() * action_mask[..., None]
    return errors.sum() / (action_mask.sum() * ACTION_DIMENSIONS)
