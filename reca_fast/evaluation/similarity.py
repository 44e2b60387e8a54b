"""How alike two pictures are by their pixels: PSNR, and SSIM as torchmetrics computes it."""

from typing import Any

from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.evaluation.reconstruction import Reconstruction, psnr

PERFECT = 100.0
"""The PSNR in dB of two equal pictures, which would be infinite and make every mean infinite; nothing has more."""
SSIM_WINDOW = 11
"""Pixels a side of the window over which SSIM compares; smaller pictures have none."""


def psnr_of(drawn: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures, uint8 [H, W, 3] both; at most `PERFECT`."""
    return min(psnr([Reconstruction("", reference, drawn)]), PERFECT)


def ssim_of(drawn: Tensor, reference: Tensor) -> float:
    """Structural similarity of two pictures, uint8 [H, W, 3] both: 1 for equal ones, about 0 for unlike ones. The
    window is Gaussian with a standard deviation of 1.5 pixels, over each of red, green and blue.

    Raises:
        UserError: the pictures are smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(drawn.shape[:2]) < SSIM_WINDOW:
        size = f"{drawn.shape[1]}x{drawn.shape[0]}"
        raise UserError(f"SSIM needs pictures of {SSIM_WINDOW} pixels a side and more, and this one has {size}.")
    # In float64: the differences of large sums that it is made of lose no digits then.
    ours, theirs = (picture.permute(2, 0, 1)[None].double() for picture in (drawn, reference))
    similarity: Any = structural_similarity_index_measure(ours, theirs, data_range=255.0)  # without a map of it
    return float(similarity)
