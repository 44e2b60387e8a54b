"""Whether drawn pictures are noise: neighbouring parts of a picture are alike, those of noise are not.

A decoder makes smooth texture even of noise, so neighbouring pixels alone tell little. Pictures are therefore looked at
in cells, from single pixels up to the size of several latent cells: noise is without likeness in cells of its own size
or larger, whatever that size is, and pictures hardly lose any. Originals of the same sheet say how much likeness there
should be.
"""

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor

from .reconstruction import Reconstruction

CELLS = (1, 2, 4, 8, 16, 32)
"""Sides of the cells in pixels."""
LEAST_CELLS = 4
"""A picture must have so many cells a side to count."""
ENOUGH = 0.5
"""The originals must be so much alike in cells of a size for it to tell anything."""
SHARE = 0.4
"""Drawn pictures whose likeness is below this share of that of their originals are noise: half picture and half noise
still have half of it, and what a VAE makes of random latents has a third at most.
"""


def likeness(pictures: Iterable[Tensor], cell: int) -> float | None:
    """How alike neighbouring cells of pictures are: the correlation of their mean grey levels, near 1 in photographs
    and near 0 in noise.

    Args:
        pictures: uint8 [H, W, 3] each, of any sizes.
        cell: side of a cell in pixels.

    Returns:
        One number for all pictures; None where none has enough cells, or all are flat.
    """
    apart = together = 0.0
    for picture in pictures:
        grey = picture.float().mean(dim=-1)[None, None]
        cells = F.avg_pool2d(grey, cell)[0, 0] if min(grey.shape[2:]) >= cell else grey[0, 0, :0]
        if not cells.numel() or min(cells.shape) < LEAST_CELLS:
            continue
        down, right = cells.diff(dim=0).square().mean().item(), cells.diff(dim=1).square().mean().item()
        apart += (down + right) / 2
        together += 2 * cells.var(correction=0).item()
    return 1 - apart / together if together else None


def is_noise(reconstructions: Sequence[Reconstruction]) -> bool:
    """Whether the drawn pictures are noise, in cells of some size, where their originals are not. Pictures of one
    colour are no noise.
    """
    for cell in CELLS:
        original = likeness((r.original for r in reconstructions), cell)
        drawn = likeness((r.drawn for r in reconstructions), cell)
        if original is not None and drawn is not None and original >= ENOUGH and drawn < SHARE * original:
            return True
    return False
