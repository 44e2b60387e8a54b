"""Writing files as torch.save does (.pth), for authors whose code reads no other. They hold tensors, nothing else."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .weights import Weights


def rewrite_torch(
    base: Weights,
    path: Path,
    *,
    changed: Mapping[str, Callable[[Tensor], Tensor]],
    added: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> None:
    """Like `rewrite_weights`, in a file of torch.save. Changed tensors, and those whose dtype changes, are in memory
    all at once: the format has its table of contents where it cannot be written ahead.

    Args:
        base: the opened file that the others come from.
        path: the new file; never the one that `base` reads.
        changed: key in `base` -> what makes of the tensor there the one that replaces it, in the same shape.
        added: key -> tensor that `base` lacks.
        dtype: of all tensors in the new file; None keeps that of `base`, tensor by tensor, and that of the added ones.

    Raises:
        ValueError: a changed tensor has another shape than in `base`.
        OSError: the file cannot be written; what there is of it stays.
    """
    tensors: dict[str, Tensor] = {}
    for key, shape in base.shapes.items():
        stored = base.tensor(key)
        value = changed[key](stored) if key in changed else stored
        if tuple(value.shape) != shape:
            raise ValueError(f"{key} has the shape {list(value.shape)}, not {list(shape)}")
        tensors[key] = _alone(value.detach().to(dtype or base.dtype(key)).cpu())
    tensors |= {key: _alone(tensor.detach().to(dtype or tensor.dtype).cpu()) for key, tensor in added.items()}
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # torch's writer calls a full disk a RuntimeError
        raise OSError(f"{path}: {' '.join(str(error).split())[:200]}") from error


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: torch.save writes all of the memory that a tensor is a part of."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
