"""Fixed position tables for pictures: a row of sines and cosines for every cell of a grid."""

import torch
from torch import Tensor


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
