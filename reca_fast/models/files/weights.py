"""What an opened file of weights offers, whichever format it has."""

import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from reca_fast.errors import UserError, reading

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that weights may have, by the names that safetensors gives them."""
TABLES = {"I64": torch.int64}
"""The dtypes of what some files hold beside the weights: numbers of positions, powers of two. No module is filled from
them.
"""


class Weights(ABC):
    """An opened file of named tensors. Nothing is read before it is asked for.

    It is a context manager. Tensors that were taken out of it stay valid after it was closed.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    """Key -> shape, of every tensor in the file."""

    @abstractmethod
    def dtype(self, key: str) -> torch.dtype:
        """The dtype in which the file holds a tensor, one of DTYPES or TABLES."""

    @abstractmethod
    def tensor(self, key: str, region: tuple[slice, ...] = ()) -> Tensor:
        """A tensor on the CPU, or the region of it that is given by a slice per dimension.

        It is memory-mapped where the format allows it: its numbers come into memory when they are first used, and all
        processes of a machine share them. So it must not be written to.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def refuse_dtype(path: Path, key: str, dtype: str) -> UserError:
    """The error for a tensor that is no weight as training needs it: integers, booleans, quantized numbers."""
    *first, last = DTYPES
    return UserError(
        f"{path} holds {key} as {dtype}; weights must be {', '.join(first)} or {last}, take a checkpoint that was not "
        "quantized."
    )


def check_readable(path: Path) -> None:
    """Refuse a path that is no regular file or that this process may not read.

    Raises:
        UserError: naming the path.
    """
    with reading(path, missing="a checkpoint folder holds it under that name"):
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is no file of weights.")  # a pipe would wait for ever
        path.open("rb").close()
