"""Tensors as the kernels read them: rows may lie anywhere in memory, but the numbers of a row lie side by side."""

from typing import TypeVar

from torch import Tensor

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def rows_dense(x: MaybeTensor) -> MaybeTensor:
    """x itself where the numbers of a row lie side by side, as in a chunk of a wider matrix; else a contiguous copy."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def stride_of(x: Tensor | None) -> int:
    """How many numbers lie between the beginnings of two rows; 0 for None."""
    return 0 if x is None else x.stride(0)
