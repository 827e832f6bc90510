"""The projector of OpenVLA ("no-align+fused-gelu-mlp"): patch features to the width of the language model."""

import torch
from torch import nn


class Projector(nn.Module):
    """Three linear layers with exact GELU between them; the names are those of OpenVLA's checkpoints."""

    def __init__(self, feature_size: int, hidden_size: int) -> None:
        """Build it with random weights.

        Args:
            feature_size: channels of a patch, of both towers together.
            hidden_size: width of the language model.
        """
        super().__init__()
        self.fc1 = nn.Linear(feature_size, 4 * feature_size)
        self.fc2 = nn.Linear(4 * feature_size, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size)

    def forward(self, patch_features: torch.Tensor) -> torch.Tensor:
        """(batch, patches, feature_size) -> (batch, patches, hidden_size)."""
        hidden = nn.functional.gelu(self.fc1(patch_features))
        return self.fc3(nn.functional.gelu(self.fc2(hidden)))
