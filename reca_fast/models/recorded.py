"""What the parity cases of all models share: a folder with tensors in safetensors files and numbers in JSON files.

`expected.safetensors` and `expected.json` hold what the authors' code computed, `expected_<run>.*` what it computed in
another run on the same inputs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.files.folder import read_object
from reca_fast.models.files.read import open_safetensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by name. Raises UserError when the file is missing or damaged."""
    with open_safetensors(path) as file:
        return {key: file.tensor(key).clone() for key in file.shapes}  # replaying may write to them


def read_inputs(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a case's inputs.safetensors, by name.

    Raises:
        UserError: the file is missing or damaged, or a tensor holds NaN or infinite numbers.
    """
    path = folder / "inputs.safetensors"
    inputs = read_tensors(path)
    for name, tensor in inputs.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinite numbers.")
    return inputs


def recorded_tensor(inputs: Mapping[str, Tensor], name: str, shape: tuple[int | None, ...], where: Path) -> Tensor:
    """The input of this name.

    Args:
        inputs: of a case.
        name: of one of them.
        shape: the shape that it must have; None stands for any length.
        where: their file, for messages.

    Raises:
        UserError: there is none, or it has another shape.
    """
    tensor, wanted = inputs.get(name), ", ".join("any" if length is None else str(length) for length in shape)
    if tensor is None:
        raise UserError(f"{where} lacks {name}, of shape [{wanted}].")
    lengths = zip(tensor.shape, shape, strict=False)
    if tensor.dim() != len(shape) or any(length not in (None, found) for found, length in lengths):
        raise UserError(f"{where}: {name} is {list(tensor.shape)}; its shape must be [{wanted}].")
    return tensor


def expected_tensors(folder: Path, run: str = "") -> dict[str, Tensor]:
    """Every recorded tensor and number of one run, by the name that `replay` gives it: a number is a 0-d fp64 tensor
    under `scalar/<path>`, and the names of a run other than "" begin with `<run>/`.

    Raises:
        UserError: a file is damaged.
    """
    stem, prefix = (f"expected_{run}", f"{run}/") if run else ("expected", "")
    tensors, scalars = folder / f"{stem}.safetensors", folder / f"{stem}.json"
    out = read_tensors(tensors) if tensors.exists() else {}
    if scalars.exists():
        out |= {f"scalar/{path}": value for path, value in recorded_scalars(read_object(scalars))}
    return {prefix + name: tensor for name, tensor in out.items()}


def recorded_scalars(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted path, 0-d fp64 tensor) of every loss and gradient norm in nested objects."""
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from recorded_scalars(value, here)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and _is_scalar(here.split(".")):
            yield here, torch.tensor(value, dtype=torch.float64)


def _is_scalar(path: list[str]) -> bool:
    return path[-1] in ("loss", "mse", "ce", "grad_norm", "grad_norm_all") or "losses" in path[:-1]
