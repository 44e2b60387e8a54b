"""Embedding of a diffusion or flow time: one number becomes a vector as wide as the model."""

import math

import torch
from torch import Tensor, nn


class TimestepEmbedder(nn.Module):
    """Cosines and sines of a time at FEATURES / 2 frequencies (cosines first), then an MLP of two layers with SiLU.

    Args:
        hidden_size: width of the model.
    """

    FEATURES = 256

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.FEATURES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Times [N] -> [N, hidden_size] in the dtype of the weights. Times are used as they are, not scaled.

        One row per picture is enough: all its tokens share their time.
        """
        half = self.FEATURES // 2
        wide = torch.promote_types(timesteps.dtype, torch.float32)
        frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=wide, device=timesteps.device))
        angles = timesteps.to(wide)[:, None] * frequencies
        features = torch.cat((angles.cos(), angles.sin()), dim=1)
        embedded: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedded
