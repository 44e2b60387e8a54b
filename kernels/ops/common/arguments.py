"""Checks of arguments. What does not fit raises a ValueError whose message begins with the argument's name."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
"""What a loss does with its rows, see reductions.py."""


def expect(holds: bool, name: str, wanted: str | Sequence[Any], got: object) -> None:
    """Raises ValueError "name: expected wanted, got got" unless it `holds`.

    Sizes are given as lists and are made a text only here: a caller that did so would have torch.compile compile anew
    for every size.
    """
    if not holds:
        raise ValueError(f"{name}: expected {_text(wanted)}, got {_text(got)}")


def _text(x: object) -> str:
    return f"[{', '.join(map(str, x))}]" if isinstance(x, tuple | list) else str(x)


def expect_tensors(**tensors: object) -> None:
    """Raises ValueError, naming the argument, for the first that is no tensor."""
    for name, x in tensors.items():
        expect(isinstance(x, Tensor), name, "a tensor", type(x).__name__)


def expect_shape(name: str, x: Tensor | None, *shape: int) -> None:
    """Raises ValueError, naming the argument, for a tensor of any other shape; None is fine."""
    if x is not None:
        expect_tensors(**{name: x})
        expect(x.shape == shape, name, shape, x.shape)


def expect_number(name: str, value: object, low: float = 0.0, high: float = float("inf")) -> None:
    """Raises ValueError unless it is a finite Python or NumPy number, low <= value <= high."""
    known = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (known and low <= value <= high and value != float("inf")):  # type: ignore[operator]
        wanted = f"a number >= {low:g}" if high == float("inf") else f"a number in [{low:g}, {high:g}]"
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def expect_index(name: str, value: object) -> None:
    """Raises ValueError unless it is a Python or NumPy integer of 64 bits.

    The sentence is made only when it is needed: torch.compile would trace it.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and -(2**63) <= value < 2**63):  # type: ignore[operator]
        raise ValueError(f"{name}: expected an integer of 64 bits, got {value!r}")


FLOATING = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""The dtypes that operations compute with."""


def expect_floating(device: torch.device, **tensors: Tensor | None) -> None:
    """Raises ValueError unless all hold floating-point numbers of 16, 32 or 64 bits on `device`, in plain tensors; None
    is fine.
    """
    given = {name: x for name, x in tensors.items() if x is not None}
    expect_tensors(**given)
    for name, x in given.items():
        if hasattr(x, "full_tensor"):
            way = f"use it in the forward pass of its FSDP module, where it is whole, or pass {name}.full_tensor()"
            raise ValueError(f"{name}: expected a plain tensor, got a DTensor; {way}")
        if x.dtype not in FLOATING:
            raise ValueError(f"{name}: expected bfloat16, float16, float32 or float64, got {x.dtype}")
        if x.device != device:
            raise ValueError(f"{name}: expected a tensor on {device}, got {x.device}")


# Asked once, at import: torch.compile cannot trace the question.
_AUTOCAST = frozenset(kind for kind in ("cpu", "cuda", "hpu", "mps", "xpu") if torch.amp.is_autocast_available(kind))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype in which autocast has matrix products computed on `device`. None where autocast is off, or where the
    kind of device has none, such as meta.
    """
    if device.type not in _AUTOCAST or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def expect_no_gradient(**tensors: Tensor | None) -> None:
    """Raises ValueError for a tensor that asks for a gradient which the operation does not compute."""
    for name, x in tensors.items():
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: expected a tensor without a gradient, for there is none; detach() it")


def expect_noise(latents: Tensor, noise: Tensor | None, seed: Any) -> None:
    """Raises ValueError unless exactly one is given: `noise`, of the latents' shape, or `seed`, 0 <= seed < 2^63."""
    if (seed is None) == (noise is None):
        raise ValueError(f"seed, noise: expected exactly one of them, got {'neither' if seed is None else 'both'}")
    expect_shape("noise", noise, *latents.shape)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise ValueError(f"seed: expected an int, 0 <= seed < 2**63, got {seed!r}")


def expect_reduction(reduction: str) -> None:
    """Raises ValueError for anything but "mean", "sum" and "none"."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}: expected 'mean', 'sum' or 'none'")
