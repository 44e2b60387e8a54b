"""A fixed table of position embeddings for the cells of a grid, made of sines and cosines."""

import torch
from torch import Tensor


def sincos_table(side: int, width: int) -> Tensor:
    """The table for a grid of side x side cells, fp32 [side * side, width].

    Row r * side + c belongs to the cell in row r and column c. Its first half tells the column, its second half the
    row; each half holds the sines, then the cosines of width / 4 angles. It is computed in fp64 and then rounded, as in
    published checkpoints.

    Raises:
        ValueError: width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width={width}: a 2-D sin/cos table needs a multiple of 4")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)  # [side, width / 2]
    by_column = waves[None].expand(side, -1, -1)
    by_row = waves[:, None].expand(-1, side, -1)
    return torch.cat((by_column, by_row), dim=-1).reshape(side * side, width).float()
