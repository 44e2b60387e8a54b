"""Named tensors, whole or sharded over processes, as safetensors files, one for each process.

Nothing in such a file can be executed. Its header says where each piece lies in the whole tensor, so any number of
processes can read what any other number wrote. Tensors are written and read piece by piece, straight from and into
their memory, without a second copy.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from reca_fast.mapped import DTYPES, MappedFile

CODES = {dtype: code for code, dtype in DTYPES.items()}
PLACES = "places"
"""Key in a file's metadata. Its value is JSON: name -> [offset in the whole tensor, shape of the whole tensor]."""
WRITE_BYTES = 1 << 24
"""How much is copied from the device and written at once: all that a save takes of memory."""
FINITE_AT_ONCE = 1 << 22
"""How many numbers are checked at once."""

Box = tuple[int, ...]
"""One number for each dimension of a tensor: an offset or a shape."""


class Damaged(Exception):
    """A file is not what was written. The message is part of a sentence."""


class Misfit(Exception):
    """The files are whole, but hold other tensors than the ones wanted. The message is part of a sentence."""


def local_part(tensor: Tensor) -> tuple[Tensor, Box]:
    """This process's part of a tensor, which shares its memory, and the offset of the part in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), (0,) * tensor.ndim
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local().detach(), tuple(offset)


def _writes(tensor: Tensor, is_main: bool) -> bool:
    """Whether this process writes its part of the tensor: of processes that hold the same part, only one does."""
    if not isinstance(tensor, DTensor):
        return is_main
    place = tensor.device_mesh.get_coordinate()
    assert place is not None, "a process of the mesh"
    return all(at == 0 for at, kind in zip(place, tensor.placements, strict=True) if kind.is_replicate())


def pieces(tensor: Tensor, most: int) -> Iterator[Tensor]:
    """The numbers of a tensor in their order, as 1-d tensors of at most `most`: views, or copies of that size where the
    tensor is not contiguous.
    """
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(most)
    elif tensor.numel() <= most:
        yield tensor.reshape(-1)
    else:
        rows = most // tensor[0].numel()
        for some in tensor.split(rows) if rows else tensor.unbind():
            yield from pieces(some, most)


def write_shards(path: Path, tensors: Mapping[str, Tensor], *, is_main: bool = True) -> str | None:
    """Write this process's parts of the tensors to a file, and wait until it is safe on the disk.

    Args:
        tensors: of any dtype in CODES, in which they are written. Every process passes the same names. A part that
            several processes hold is written by one of them.
        is_main: whether this process writes the tensors that are no DTensors.

    Returns:
        The checksum of the file (xxh3, 128 bits, hex), or None when this process had nothing to write.
    """
    parts, header, places, end = [], {}, {}, 0
    for name, tensor in tensors.items():
        part, offset = local_part(tensor)
        if not _writes(tensor, is_main) or (part.numel() == 0 and tensor.numel() > 0):
            continue
        start, end = end, end + part.numel() * part.element_size()
        header[name] = {"dtype": CODES[part.dtype], "shape": list(part.shape), "data_offsets": [start, end]}
        places[name] = [list(offset), list(tensor.shape)]
        parts.append(part)
    if not parts:
        return None
    text = json.dumps({"__metadata__": {PLACES: json.dumps(places)}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksum = xxhash.xxh3_128()
    with open(path, "wb") as file:
        for head in (struct.pack("<Q", len(text)), text):
            checksum.update(head)
            file.write(head)
        for part in parts:
            for piece in pieces(part, WRITE_BYTES // part.element_size()):
                data = piece.cpu().view(torch.uint8).numpy().data
                checksum.update(data)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return checksum.hexdigest()


class _Piece(NamedTuple):
    """A part of a tensor in one of the files."""

    file: MappedFile
    offset: Box  # in the whole tensor
    shape: Box  # of the piece
    dtype: torch.dtype


class ShardFiles:
    """The tensors in the files of a checkpoint, by name. As a context manager it closes the files at its end.

    Attributes:
        shapes: name -> shape of the whole tensor.

    Raises:
        Damaged: a file was not written by `write_shards`, or the pieces of a tensor are not all of it. Every method
            that reads may raise this too.
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
        file = self._open.enter_context(MappedFile(path))
        places = json.loads(file.metadata[PLACES])
        for name, shape in file.shapes.items():
            offset, whole = map(tuple, places[name])
            numbers = (*offset, *whole)
            if not (all(type(n) is int and n >= 0 for n in numbers) and len(shape) == len(offset) == len(whole)):
                raise ValueError(name)
            if any(o + s > w for o, s, w in zip(offset, shape, whole, strict=True)):
                raise ValueError(name)
            if self.shapes.setdefault(name, whole) != whole:
                raise ValueError(name)
            self._pieces.setdefault(name, []).append(_Piece(file, offset, shape, DTYPES[file.codes[name]]))

    def __enter__(self) -> "ShardFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def read(self, name: str) -> Tensor:
        """The whole tensor, on the CPU, in the dtype that it has in the file. It must not be written to: where it lies
        in one piece, it is a view of the file.
        """
        first, *others = self._pieces[name]
        if not others:
            return first.file.tensor(name)
        dtype = first.dtype
        tensor = torch.empty(self.shapes[name], dtype=dtype)
        self.read_into(name, tensor)
        return tensor

    @torch.no_grad()
    def read_into(self, name: str, tensor: Tensor) -> None:
        """Copy the values of the tensor called `name` into this process's part of `tensor`.

        Raises:
            Misfit: the files hold no such tensor, or one of another shape or dtype.
        """
        if name not in self.shapes:
            raise Misfit(f"it holds no {name}")
        if self.shapes[name] != tuple(tensor.shape):
            raise Misfit(f"{name} is {list(self.shapes[name])} there and {list(tensor.shape)} here")
        part, at = local_part(tensor)
        left = part.numel()
        for piece, (theirs, ours) in self._overlaps(name, at, tuple(part.shape)):
            data = piece.file.tensor(name, theirs)
            if data.dtype != part.dtype:
                raise Misfit(f"{name} is {data.dtype} there and {part.dtype} here")
            part[ours].copy_(data)
            left -= data.numel()
        if left:
            raise Damaged(f"{name} is not complete")

    def _overlaps(self, name: str, at: Box, size: Box) -> Iterator[tuple[_Piece, tuple[tuple[slice, ...], ...]]]:
        """The pieces that overlap a box of a tensor, whose offset is `at` and whose shape is `size`.

        Each comes with the slices of the piece and the slices of the box that select the overlap.
        """
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
    """Whether this process's parts hold neither inf nor NaN; integers never do. The device goes over them once, without
    a copy of any; the host waits once.
    """
    parts = [part for part, _ in map(local_part, tensors.values()) if part.numel() and part.is_floating_point()]
    # Both ends of a part are NaN where one of its numbers is. On a CPU, a part at a time stays in its cache.
    ends = [end for part in parts for piece in pieces(part, FINITE_AT_ONCE) for end in piece.aminmax()]
    finite = [end.isfinite() for end in ends]
    return not finite or bool(torch.stack(finite).all())
