"""Weights without numbers: a module is filled as from a file, and nothing is read."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .names import SAME_NAMES, NameTable
from .weights import Weights
from .wrapped import plain_tensors


class EmptyWeights(Weights):
    """What a file of weights of this module would hold, uninitialised. Under FakeTensorMode it takes no memory at all.

    Args:
        module: whose parameters and persistent buffers the file would hold.
        names: what the file would call them.
        dtype: of every tensor in it.
    """

    def __init__(self, module: nn.Module, names: NameTable = SAME_NAMES, dtype: torch.dtype = torch.bfloat16) -> None:
        self.path = Path("no file")
        self._dtype = dtype
        self.shapes = {
            names.key(held.name): names.stored_shape(held.name, held.tensor.shape) for held in plain_tensors(module)
        }

    def dtype(self, key: str) -> torch.dtype:
        return self._dtype

    def tensor(self, key: str, region: Sequence[slice] = ()) -> Tensor:
        whole = self.shapes[key]
        cut = (*region, *(slice(None),) * (len(whole) - len(region)))
        shape = [len(range(*part.indices(size))) for part, size in zip(cut, whole, strict=True)]
        return torch.empty(shape, dtype=self._dtype)

    def close(self) -> None:
        pass
