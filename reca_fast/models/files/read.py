"""Opening files of weights, strictly: a missing, damaged or quantized one is refused with a sentence that names it."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.mapped import MappedFile

from .pth import TORCH_SUFFIXES, TorchWeights
from .weights import DTYPES, TABLES, Weights, check_readable, refuse_dtype

CHECKED_AT_ONCE = 2**24
"""How many numbers of a tensor are checked at once: 64 MB of fp32."""


def open_weights(path: Path) -> Weights:
    """Open a file of weights: one that torch.save wrote if its name ends in .pth, .pt, .ckpt or .bin, else safetensors.

    Raises:
        UserError: the file is missing, damaged or of another format, or holds something that is no weight.
    """
    return TorchWeights(path) if path.suffix in TORCH_SUFFIXES else SafetensorsWeights(path)


class SafetensorsWeights(Weights):
    """An opened safetensors file; opening reads its header alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_safetensors(path)
        self.shapes = self._file.shapes
        for key, code in self._file.codes.items():
            if code not in DTYPES | TABLES:
                raise refuse_dtype(path, key, code)

    def dtype(self, key: str) -> torch.dtype:
        return (DTYPES | TABLES)[self._file.codes[key]]

    def tensor(self, key: str, region: tuple[slice, ...] = ()) -> Tensor:
        return self._file.tensor(key, region)

    def close(self) -> None:
        self._file.close()


def open_safetensors(path: Path) -> MappedFile:
    """A safetensors file, memory-mapped, for tensors of any dtype.

    Raises:
        UserError: the file is missing, cannot be read or is damaged.
    """
    check_readable(path)  # safetensors would call a forbidden file missing
    try:
        return MappedFile(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download it again.") from None


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor in a file of weights. Raises UserError like `open_weights`."""
    with open_weights(path) as weights:
        return dict(weights.shapes)


def check_finite(path: Path) -> None:
    """Read a whole file of weights and refuse it when a number in it is NaN or infinite.

    Raises:
        UserError: naming the first three such tensors; or the file cannot be opened (see `open_weights`).
    """
    broken = []
    with open_weights(path) as weights:
        for key in sorted(weights.shapes):
            if not weights.dtype(key).is_floating_point:
                continue
            parts = weights.tensor(key).reshape(-1).split(CHECKED_AT_ONCE)
            # Both ends of a part are NaN where one of its numbers is: ten times as fast as asking each number.
            if not all(bool(torch.stack(part.aminmax()).isfinite().all()) for part in parts if part.numel()):
                broken.append(key)
    if broken:
        raise UserError(
            f"{path}: {len(broken)} tensors hold NaN or infinite numbers ({', '.join(broken[:3])}"
            f"{', ...' if len(broken) > 3 else ''}); it was saved by a run that had diverged, take an earlier one."
        )
