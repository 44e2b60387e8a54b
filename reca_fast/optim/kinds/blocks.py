"""Moments in few bits: codes, and a scale for every block of numbers."""

from math import prod

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..parts import New, share_like
from .adamw import MOMENTS

QUANTIZED_FROM = 4096
"""Parameters with fewer numbers keep their moments in fp32, as the libraries have it."""


def in_blocks(parameter: Tensor, block: int) -> bool:
    """Whether the moments of a parameter are kept in blocks: if it is large, and every block lies in the part of one
    process. Any number of processes comes to the same, but for rows that do not divide into blocks: those are one
    process's.
    """
    whole = prod(parameter.shape[1:]) if isinstance(parameter, DTensor) else parameter.numel()
    return parameter.numel() >= QUANTIZED_FROM and whole % block == 0


def new_blocks(parameter: Tensor, block: int, bits: int, new_codes: New, new: New) -> dict[str, Tensor]:
    """Both moments of a parameter, all 0: for each, `_codes` in uint8 and `_scales` in fp32, shared out over the
    processes as the parameter is.

    Args:
        parameter: for which `in_blocks` holds.
        block: numbers that share a scale.
        bits: of a code, 8 or 4. Two codes of 4 bits share a byte.
        new_codes: makes the codes.
        new: makes the scales.
    """
    rows, row = parameter.shape[0], prod(parameter.shape[1:])

    def shape(numbers: int) -> tuple[int, ...]:
        """Of a tensor that holds one entry for that many numbers of the parameter."""
        return (rows, row // numbers) if row % block == 0 else (rows * row // numbers,)

    states = {}
    for moment in MOMENTS:
        states[f"{moment}_codes"] = share_like(parameter, shape(8 // bits), torch.uint8, new_codes)
        states[f"{moment}_scales"] = share_like(parameter, shape(block), torch.float32, new)
    return states
