"""Timestep embedding: a time in [0, 1] as a vector."""

import math

import torch
from torch import Tensor, nn


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of t (cosines first, t in [0, 1] unscaled) through a two-layer SiLU MLP."""

    FEATURES = 256

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.FEATURES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, timesteps: Tensor) -> Tensor:
        """timesteps [N] -> [N, hidden_size]. One row per picture is enough: all its tokens share t."""
        half = self.FEATURES // 2
        wide = torch.promote_types(timesteps.dtype, torch.float32)
        frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=wide, device=timesteps.device))
        angles = timesteps.to(wide)[:, None] * frequencies
        features = torch.cat((angles.cos(), angles.sin()), dim=1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))
