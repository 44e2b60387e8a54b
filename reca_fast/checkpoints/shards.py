"""Named tensors, whole or sharded over processes, as plain safetensors files, one per process.

Nothing in them can execute. A file's header says where each of its pieces lies in the whole tensor, so any number of
processes can read what any other number wrote. Both ways stream: a tensor is written and read piece by piece, in place,
without a second copy.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
NAMED = {name: dtype for dtype, name in DTYPES.items()}
PLACES = "places"  # metadata: JSON, name -> [offset in the whole tensor, shape of the whole tensor]
WRITE_BYTES = 1 << 26

Box = tuple[int, ...]


class Damaged(Exception):
    """A file is not what was written, in words."""


class Misfit(Exception):
    """The files are whole, but hold other tensors than the ones wanted, in words."""


def local_part(tensor: Tensor) -> tuple[Tensor, Box]:
    """This process's part of a tensor, sharing its memory, and the part's offset in the whole."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), (0,) * tensor.ndim
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local().detach(), tuple(offset)


def _writes(tensor: Tensor, is_main: bool) -> bool:
    """Whether this process is the one of its replicas that writes the tensor."""
    if not isinstance(tensor, DTensor):
        return is_main
    place = tensor.device_mesh.get_coordinate()
    assert place is not None, "a process of the mesh"
    return all(at == 0 for at, kind in zip(place, tensor.placements, strict=True) if kind.is_replicate())


def write_shards(path: Path, tensors: Mapping[str, Tensor], *, is_main: bool = True) -> str | None:
    """Write this process's parts to a file and make it durable.

    Args:
        tensors: of floats; every process passes the same names. What processes hold in common is written once.
        is_main: this process writes the tensors that are no DTensors.

    Returns:
        The file's checksum (xxh3, 128 bits, hex), or None when this process has nothing to write.
    """
    parts, header, places, end = [], {}, {}, 0
    for name, tensor in tensors.items():
        part, offset = local_part(tensor)
        if not _writes(tensor, is_main) or (part.numel() == 0 and tensor.numel() > 0):
            continue
        start, end = end, end + part.numel() * part.element_size()
        header[name] = {"dtype": DTYPES[part.dtype], "shape": list(part.shape), "data_offsets": [start, end]}
        places[name] = [list(offset), list(tensor.shape)]
        parts.append(part)
    if not parts:
        return None
    text = json.dumps({"__metadata__": {PLACES: json.dumps(places)}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksum = xxhash.xxh3_128()
    with open(path, "wb") as file:
        for data in (struct.pack("<Q", len(text)), text):
            checksum.update(data)
            file.write(data)
        for part in parts:
            for piece in part.contiguous().view(-1).view(torch.uint8).split(WRITE_BYTES):
                data = piece.cpu().numpy().data
                checksum.update(data)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return checksum.hexdigest()


class _Piece(NamedTuple):
    """A part of a tensor in one of the files."""

    file: Any
    offset: Box
    shape: Box
    dtype: torch.dtype


class ShardFiles:
    """The tensors in the files of a checkpoint, by name. A context: the files stay open inside.

    Raises (wherever it reads):
        Damaged: a file is no safetensors file of ours, or the pieces of a tensor do not fill it.
        OSError: a file cannot be opened.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._pieces: dict[str, list[_Piece]] = {}
        self.shapes: dict[str, Box] = {}
        self._open = ExitStack()
        try:
            for path in paths:
                self._list(path)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.close()
            raise Damaged(f"{path.name} is damaged") from error
        except BaseException:
            self.close()
            raise
        for name, shape in self.shapes.items():
            if sum(prod(piece.shape) for piece in self._pieces[name]) != prod(shape):
                self.close()
                raise Damaged(f"{name} is not complete")

    def _list(self, path: Path) -> None:
        file = self._open.enter_context(safe_open(path, "pt"))
        places = json.loads((file.metadata() or {})[PLACES])
        for name in file.keys():  # noqa: SIM118 (not a dict)
            found = file.get_slice(name)
            shape, (offset, whole) = tuple(found.get_shape()), map(tuple, places[name])
            numbers = (*offset, *whole)
            if not (all(type(n) is int and n >= 0 for n in numbers) and len(shape) == len(offset) == len(whole)):
                raise ValueError(name)
            if any(o + s > w for o, s, w in zip(offset, shape, whole, strict=True)):
                raise ValueError(name)
            if self.shapes.setdefault(name, whole) != whole:
                raise ValueError(name)
            self._pieces.setdefault(name, []).append(_Piece(file, offset, shape, NAMED[found.get_dtype()]))

    def __enter__(self) -> "ShardFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def read(self, name: str) -> Tensor:
        """The whole tensor, on the CPU, in the dtype of the file."""
        dtype = self._pieces[name][0].dtype
        tensor = torch.empty(self.shapes[name], dtype=dtype)
        self.read_into(name, tensor)
        return tensor

    @torch.no_grad()
    def read_into(self, name: str, tensor: Tensor) -> None:
        """Copy into this process's part of `tensor`.

        Raises:
            Misfit: there is no such tensor, or it has another shape or dtype.
        """
        if name not in self.shapes:
            raise Misfit(f"it holds no {name}")
        if self.shapes[name] != tuple(tensor.shape):
            raise Misfit(f"{name} is {list(self.shapes[name])} there and {list(tensor.shape)} here")
        part, at = local_part(tensor)
        left = part.numel()
        for piece, (theirs, ours) in self._overlaps(name, at, tuple(part.shape)):
            try:
                whole = theirs == tuple(slice(0, n) for n in piece.shape)
                data = piece.file.get_tensor(name) if whole else piece.file.get_slice(name)[theirs]
            except (SafetensorError, ValueError) as error:
                raise Damaged(f"{name} is damaged") from error
            if data.dtype != part.dtype:
                raise Misfit(f"{name} is {data.dtype} there and {part.dtype} here")
            part[ours].copy_(data)
            left -= data.numel()
        if left:
            raise Damaged(f"{name} is not complete")

    def _overlaps(self, name: str, at: Box, size: Box) -> Iterator[tuple[_Piece, tuple[tuple[slice, ...], ...]]]:
        """(piece, (its slices, the slices of the box at `at`)) for every piece that meets the box."""
        for piece in self._pieces[name]:
            low = [max(a, b) for a, b in zip(piece.offset, at, strict=True)]
            high = [min(o + s, a + n) for o, s, a, n in zip(piece.offset, piece.shape, at, size, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                yield (
                    piece,
                    tuple(
                        tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
                        for origin in (piece.offset, at)
                    ),
                )


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether this process's parts hold neither inf nor NaN; one pass on the device, one look at the host."""
    parts = [part for part, _ in map(local_part, tensors.values()) if part.numel()]
    finite = [end.isfinite() for part in parts for end in part.aminmax()]  # both ends are NaN where one number is
    return not finite or bool(torch.stack(finite).all())
