"""silu(gate) * up."""

from ..common.registry import operation
from . import costs
from .contract import swiglu

__all__ = ["swiglu"]

operation(
    "swiglu",
    functions=[swiglu],
    cost=costs.cost,
    computed_by="liger",
)
