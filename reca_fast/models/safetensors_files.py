"""Reading safetensors files strictly: memory-mapped, every key and shape accounted for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reca_fast.errors import UserError

Shapes = Mapping[str, Sequence[int]]
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Names in the file of the dtypes that weights may have."""


def open_safetensors(path: Path, device: str = "cpu") -> Any:
    """A memory-mapped safetensors file; a missing or damaged one is a UserError that names it."""
    try:
        return safe_open(path, framework="pt", device=device)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a checkpoint folder holds it under that name.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download it again.") from None


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Key -> shape of everything in a file of weights; only its header is read.

    Raises:
        UserError: the file is missing or damaged, or a tensor is no weight (integers, 8 bit).
    """
    with open_safetensors(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        for key, part in slices.items():
            if part.get_dtype() not in WEIGHT_DTYPES:
                raise UserError(
                    f"{path} holds {key} as {part.get_dtype()}; weights must be {', '.join(WEIGHT_DTYPES[:-1])} or "
                    f"{WEIGHT_DTYPES[-1]}, take a checkpoint that was not quantized."
                )
        return {key: tuple(part.get_shape()) for key, part in slices.items()}


def check_layout(path: Path, expected: Shapes, found: Shapes) -> None:
    """Refuse a file that has a missing, unexpected or misshapen tensor, naming the first three of each kind.

    Raises:
        UserError: the keys or shapes in `found` differ from `expected`.
    """
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{key} {list(found[key])} instead of {list(shape)}"
            for key, shape in sorted(expected.items())
            if key in found and list(found[key]) != list(shape)
        ],
    }
    said = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in faults.items()
        if keys
    ]
    if said:
        raise UserError(
            f"{path} does not fit the configuration beside it, tensors: {'; '.join(said)}. "
            "Take both from one checkpoint, or correct its config.json."
        )
