"""Proprioception as one token, which the action queries follow: the projector of OpenVLA-OFT (arXiv 2502.19645).

π0 reads the robot's state by itself; OpenVLA, and so the paper's policy on it, sees the robot on the image alone. On few patches
that is coarse, and the state says it to the millimetre.
"""

import torch
from torch import nn

from model.backbones.settings import STATE_SIZE


class StateEncoder(nn.Module):
    """Scaled proprioception -> a token of the width of the action queries."""

    def __init__(self, size: int) -> None:
        """Build it so that its token is zero at first: a trained backbone is told nothing at random."""
        super().__init__()
        self.token_mlp = nn.Sequential(nn.Linear(STATE_SIZE, size), nn.GELU(), nn.Linear(size, size))
        for parameter in self.token_mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """(batch, STATE_SIZE), see `ModelSettings.scale_state` -> (batch, 1, size)."""
        return self.token_mlp(state.to(next(self.parameters()).dtype))[:, None]
