"""The ways of taking one training step that `bench/step.py` compares, model by model: what they compute is the same.

A module of this room describes one model: SIZES, WAYS, `write` and `build`, as `Model` below says.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from .way import Precision, Step, Way, Work

__all__ = ["MODELS", "Model", "Precision", "Step", "Way", "Work", "ways_of"]

MODELS = ("bagel", "openuni", "harmon")


class Model(Protocol):
    """What the module of a model has."""

    SIZES: Mapping[str, Any]
    """Sizes that can be measured, by name; "recorded" and "tiny" among them."""
    WAYS: Mapping[str, Way]
    """Name -> way, those that recompute behind those that do not."""
    write: Callable[[str, Path], None]
    """Write the weights, and the inputs, of a size into a folder: all ways begin with them."""
    build: Callable[[Way, Work], Step]
    """A way, ready to take steps."""


def ways_of(model: str) -> Model:
    """The module of a model, one of MODELS."""
    return cast(Model, importlib.import_module(f"bench.ways.{model}"))
