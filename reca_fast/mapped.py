"""A safetensors file, mapped into memory read-only and shared: its tensors are the page cache's own bytes.

safetensors' reader for torch asks for a private, writable mapping. The system reserves memory for all of it, and
refuses 29 GB on a host that has less, although nobody ever writes. Here safetensors checks the header, and the bytes
are mapped so that nothing is reserved: what is read can be dropped again, and all processes of a machine share it.
"""

import mmap
import warnings
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes whose tensors can be taken out, by the names that safetensors gives them."""


class MappedFile:
    """An opened safetensors file; opening reads its header alone. As a context manager it closes the file at its end.

    Tensors that were taken out of it stay valid after it was closed. They are views of the file: writing to one ends
    the process.

    Attributes:
        shapes: key -> shape, of every tensor.
        codes: key -> name of its dtype in safetensors, which need not be one of DTYPES.
        metadata: what the writer said about the file.

    Raises:
        SafetensorError: the header is damaged, or does not describe every byte of the file once.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        # For numpy it maps read-only, and nothing is read through it but the header, of which it has checked sizes,
        # types, and that tensors follow one another without a gap up to the end of the file.
        with safe_open(path, framework="np") as header:
            parts = {key: header.get_slice(key) for key in header.offset_keys()}
            self.metadata: dict[str, str] = header.metadata() or {}
            self.codes: dict[str, str] = {key: part.get_dtype() for key, part in parts.items()}
            self.shapes: dict[str, tuple[int, ...]] = {key: tuple(part.get_shape()) for key, part in parts.items()}
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            self._bytes: Tensor | None = torch.frombuffer(mapped, dtype=torch.uint8)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Key -> first byte of the tensor in the file, and the one after its last. Tensors end where the file ends."""
        assert self._bytes is not None, "the file is closed"
        sizes = {key: prod(shape) * DTYPES[self.codes[key]].itemsize for key, shape in self.shapes.items()}
        ends = accumulate(sizes.values(), initial=len(self._bytes) - sum(sizes.values()))
        return dict(zip(sizes, pairwise(ends), strict=True))

    def tensor(self, key: str, region: tuple[slice, ...] = ()) -> Tensor:
        """A tensor on the CPU, or the region of it that is given by a slice per dimension; not to be written to.

        Its numbers come into memory when they are first used.

        Raises:
            KeyError: the file has no such tensor, or one in it is of a dtype that is not in DTYPES.
        """
        assert self._bytes is not None, "the file is closed"
        (begin, end), dtype = self._places[key], DTYPES[self.codes[key]]
        part = self._bytes[begin:end]
        if begin % dtype.itemsize:  # a header of odd length; nobody's writer makes one
            part = part.clone()
        whole = part.view(dtype).view(self.shapes[key]) if part.numel() else torch.empty(self.shapes[key], dtype=dtype)
        return whole[region or ...]

    def close(self) -> None:
        """Let go of the file. The mapping goes with the last tensor that was taken out."""
        self._bytes = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
