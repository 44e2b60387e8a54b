"""Telling whether two tensors are views of one memory, without keeping it alive."""

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


def identity(tensor: Tensor) -> StorageWeakRef:
    """Which memory is behind a tensor, real or fake. While this is held, no other memory gets the same identity, though
    this one may be freed.
    """
    return StorageWeakRef(tensor.untyped_storage())
