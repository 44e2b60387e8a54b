"""Reading safetensors files strictly: memory-mapped, every key and shape accounted for."""

import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reca_fast.errors import UserError, reading

Shapes = Mapping[str, Sequence[int]]
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Names in the file of the dtypes that weights may have."""
CHECKED_AT_ONCE = 2**24
"""Numbers in one piece of a tensor that is checked."""


def open_safetensors(path: Path, device: str = "cpu") -> Any:
    """A memory-mapped safetensors file; a missing or damaged one is a UserError that names it."""
    with reading(path, missing="a checkpoint folder holds it under that name"):
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is no file of weights.")  # a pipe would wait for ever
        path.open("rb").close()  # safetensors would call a forbidden file missing
    try:
        return safe_open(path, framework="pt", device=device)
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


def check_finite(path: Path) -> None:
    """Read a file of weights through, some 64 MB at a time.

    Raises:
        UserError: some of the numbers are NaN or infinite; the first three tensors are named.
    """
    broken = []
    with open_safetensors(path) as file:
        for key in sorted(file.keys()):
            numbers = file.get_tensor(key).view(-1)
            if not all(bool(part.isfinite().all()) for part in numbers.split(CHECKED_AT_ONCE)):
                broken.append(key)
    if broken:
        raise UserError(
            f"{path}: {len(broken)} tensors hold NaN or infinite numbers ({', '.join(broken[:3])}"
            f"{', ...' if len(broken) > 3 else ''}); it was saved by a run that had diverged, take an earlier one."
        )


def check_layout(path: Path, expected: Shapes, found: Shapes) -> None:
    """Refuse a file that has a missing, unexpected or misshapen tensor, naming the first three of each kind.

    Raises:
        UserError: the keys or shapes in `found` differ from `expected`.
    """
    parts = Counter(key.partition(".")[0] for key in expected)
    absent = Counter(key.partition(".")[0] for key in expected.keys() - found.keys())
    left_out = [part for part, count in parts.items() if absent[part] == count > 1]
    if left_out and len(left_out) < len(parts) and found.keys() <= expected.keys():
        raise UserError(
            f"{path} was saved without {' and '.join(f'{part}.*' for part in left_out)} "
            f"({sum(absent[part] for part in left_out)} tensors), as some trainers save what they train; copy these "
            "tensors into it from the checkpoint that the training began with (BAGEL-7B-MoT's ema.safetensors)."
        )
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
