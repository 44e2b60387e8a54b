"""Writing safetensors files tensor by tensor.

safetensors' own writer wants all tensors in memory at once, 29 GB for BAGEL. The format is the length of a JSON header,
the header, and the bytes of the tensors, so it is written here.
"""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .weights import DTYPES, TABLES, Weights

AT_ONCE = 2**22
"""How many numbers of a tensor are cast, copied from the device and written at once: 16 MB of fp32."""


Change = Tensor | Callable[[Tensor], Tensor]
"""What becomes of a tensor of a base: another one, or what is made of it."""


def after(change: Change, base: Tensor) -> Tensor:
    """The tensor that a change puts in the place of `base`."""
    return change if isinstance(change, Tensor) else change(base)


class Stored(NamedTuple):
    """How a tensor stands in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def write_safetensors(path: Path, layout: Mapping[str, Stored], tensor: Callable[[str], Tensor]) -> None:
    """Write a file of weights, holding one tensor at a time.

    Args:
        path: the file, which is replaced if it exists.
        layout: key -> dtype (one of DTYPES or TABLES) and shape, of every tensor.
        tensor: gives the tensor of a key when its turn has come, in any dtype, on any device.

    Raises:
        ValueError: a tensor has another shape than `layout` says.
        OSError: the file cannot be written; what there is of it stays.
    """
    with open(path, "wb") as file:
        file.write(header_of(layout))
        for key in _in_order(layout):
            dtype, shape = layout[key]
            value = tensor(key)
            if tuple(value.shape) != shape:
                raise ValueError(f"{key} has the shape {list(value.shape)}, not {list(shape)}")
            for piece in value.detach().contiguous().view(-1).split(AT_ONCE):
                file.write(piece.to(dtype).cpu().view(torch.uint8).numpy().data)


def header_of(layout: Mapping[str, Stored]) -> bytes:
    """The beginning of a safetensors file, whose tensors follow it in the order that it states.

    Args:
        layout: key -> dtype (one of DTYPES or TABLES) and shape, of every tensor.
    """
    codes = {dtype: code for code, dtype in (DTYPES | TABLES).items()}
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in _in_order(layout):
        dtype, shape = layout[key]
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[key] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def _in_order(layout: Mapping[str, Stored]) -> list[str]:
    """Widest numbers first, so that each tensor begins at a multiple of its numbers' size."""
    return sorted(layout, key=lambda key: (-layout[key].dtype.itemsize, key))


def rewrite_weights(
    base: Weights,
    path: Path,
    *,
    changed: Mapping[str, Callable[[Tensor], Tensor]],
    added: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> None:
    """Write a file that holds what `base` holds, some of its tensors changed and some added.

    Args:
        base: the opened file that the others come from.
        path: the new file; never the one that `base` reads.
        changed: key in `base` -> what makes of the tensor there the one that replaces it, in the same shape.
        added: key -> tensor that `base` lacks.
        dtype: of all weights in the new file; None keeps that of `base`, tensor by tensor, and that of the added ones.

    Raises:
        ValueError: a changed tensor has another shape than in `base`.
        OSError: the file cannot be written; what there is of it stays.
    """
    kept = {key: base.dtype(key) for key in base.shapes}
    layout = {
        key: Stored(dtype if dtype and kept[key].is_floating_point else kept[key], shape)
        for key, shape in base.shapes.items()
    }
    layout |= {key: Stored(dtype or tensor.dtype, tuple(tensor.shape)) for key, tensor in added.items()}

    def tensor(key: str) -> Tensor:
        if key in changed:
            return changed[key](base.tensor(key))
        return added[key] if key in added else base.tensor(key)

    write_safetensors(path, layout, tensor)
