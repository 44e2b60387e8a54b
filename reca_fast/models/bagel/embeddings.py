"""Position tables, timestep embedding, rotary angles: everything that turns a number into a vector."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sincos_table(side: int, width: int) -> Tensor:
    """Fixed 2-D sin/cos table, fp32 [side * side, width]; row n = row * side + column, column first (facts: BAGEL
    `pos_embed`).

    Computed in fp64 as the checkpoints were; `width` must be divisible by 4.
    """
    if width % 4:
        raise ValueError(f"width={width}: a 2-D sin/cos table needs a multiple of 4")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)  # [side, width / 2]
    by_column = waves[None].expand(side, -1, -1)
    by_row = waves[:, None].expand(-1, side, -1)
    return torch.cat((by_column, by_row), dim=-1).reshape(side * side, width).float()


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin [N, head_dim] for half-split rotary; positions int64 [N]."""
    exponents = torch.arange(0, head_dim, 2, dtype=dtype, device=positions.device) / head_dim
    angles = positions.to(dtype)[:, None] / theta**exponents
    angles = torch.cat((angles, angles), dim=1)
    return angles.cos(), angles.sin()


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


class Connector(nn.Module):
    """Vision width to language width: fc2(gelu_tanh(fc1(x)))."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """[N, vision_size] -> [N, hidden_size]."""
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
