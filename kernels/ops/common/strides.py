"""Views as the kernels read them: rows anywhere in memory, the numbers of a row side by side."""

from typing import TypeVar

from torch import Tensor

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def rows_dense(x: MaybeTensor) -> MaybeTensor:
    """x itself where the last dimension is dense, e.g. a chunk of a wider matrix; else a copy."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def stride_of(x: Tensor | None) -> int:
    """From row to row; 0 for what is not there."""
    return 0 if x is None else x.stride(0)
