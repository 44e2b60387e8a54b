"""MAR's learned position tables, resampled for other grids than the one that they were learned on."""

import torch
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of a picture's tokens."""


def resampled(table: Tensor, grid: Grid) -> Tensor:
    """A table for another grid: bilinear between the cells, without aligned corners and without antialiasing.

    Args:
        table: [side * side, D], row by row, of a square grid.
        grid: rows and columns that are wanted.

    Returns:
        [rows * columns, D], row by row; for the table's own grid the table itself.
    """
    side, (rows, columns) = round(len(table) ** 0.5), grid
    if grid == (side, side):
        return table
    # Two small products instead of torch's interpolation, whose backward pass adds in an order that changes.
    with torch.autocast(table.device.type, enabled=False):
        cells = table.to(torch.promote_types(table.dtype, torch.float32)).view(side, side, -1)
        down, across = (_mixing(side, count, cells) for count in (rows, columns))
        mixed = torch.einsum("rs,cq,sqd->rcd", down, across, cells)
    return mixed.flatten(0, 1).to(table.dtype)


def _mixing(side: int, count: int, like: Tensor) -> Tensor:
    """Shares [count, side] of the old cells along one axis in each of the new ones."""
    new, old = (torch.arange(n, device=like.device, dtype=like.dtype) for n in (count, side))
    place = ((new + 0.5) * (side / count) - 0.5).clamp(0, side - 1)
    return (1 - (place[:, None] - old).abs()).clamp(min=0)
