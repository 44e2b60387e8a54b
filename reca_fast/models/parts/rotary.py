"""Rotary position embedding: the angles by which queries and keys are turned."""

import torch
from torch import Tensor


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin [N, head_dim] for half-split rotary; positions int64 [N]."""
    exponents = torch.arange(0, head_dim, 2, dtype=dtype, device=positions.device) / head_dim
    angles = positions.to(dtype)[:, None] / theta**exponents
    angles = torch.cat((angles, angles), dim=1)
    return angles.cos(), angles.sin()
