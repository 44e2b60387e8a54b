"""Files that torch.save wrote (.pth, .pt, .ckpt, .bin), as some authors publish their weights.

Such a file is a pickle, and reading an arbitrary pickle runs whatever code its writer put there. Only tensors and plain
containers are read here (torch's `weights_only`); a file that asks for anything else is refused and nothing of it runs.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from reca_fast.errors import UserError

from .weights import DTYPES, TABLES, Weights, check_readable, refuse_dtype

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
WRAPPERS = ("state_dict", "model")
"""Entries under which trainers keep the weights when they save other things beside them."""


class TorchWeights(Weights):
    """An opened file of torch.save; its tensors are memory-mapped.

    The weights are the dictionary in the file, or its entry `state_dict` or `model` where there is one.

    Raises:
        UserError: the file is missing, damaged, asks for code to be run, or holds something that is no weight.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _tensors(path, _unwrapped(path, _contents(path)))
        self.shapes = {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].dtype

    def tensor(self, key: str, region: tuple[slice, ...] = ()) -> Tensor:
        return self._tensors[key][region or ...]

    def close(self) -> None:
        self._tensors = {}


def _contents(path: Path) -> Any:
    """What was saved, its tensors still in the file."""
    check_readable(path)
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not a whole file of torch.save (or older than torch 1.6, whose format cannot be mapped into "
            "memory); download it again."
        )
    try:
        needed = get_unsafe_globals_in_checkpoint(path)
        saved = None if needed else torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        said = " ".join(str(error).split())
        raise UserError(f"{path} is not a whole file of torch.save ({said[:200]}); download it again.") from None
    if needed:
        raise UserError(
            f"{path} holds more than tensors: to read it, Python would have to run {', '.join(sorted(needed)[:3])}, "
            "and so any code that its writer chose. Take a .safetensors file of the same weights, or save the tensors "
            "alone where you trust the file."
        )
    return saved


def _unwrapped(path: Path, saved: Any) -> Mapping[str, Any]:
    """The dictionary of weights, which may lie in an entry of the one that was saved."""
    for name in WRAPPERS:
        if isinstance(saved, Mapping) and isinstance(saved.get(name), Mapping):
            saved = saved[name]
    if not isinstance(saved, Mapping) or not saved:
        raise UserError(f"{path} holds no dictionary of weights, but {type(saved).__name__}; take another file.")
    return saved


def _tensors(path: Path, saved: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The weights, each of them checked to be a plain tensor of fractions."""
    names = {dtype: name for name, dtype in (DTYPES | TABLES).items()}
    for key, value in saved.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} holds {str(key)[:60]!r} beside its weights, which is no tensor; take another file."
            )
        if value.layout != torch.strided or value.dtype not in names:
            raise refuse_dtype(path, key, str(value.dtype).removeprefix("torch."))
    return dict(saved)
