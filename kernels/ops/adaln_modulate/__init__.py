"""LayerNorm whose result is scaled and shifted by the rows' own modulation (adaptive LayerNorm)."""

from ..common.registry import operation
from . import costs
from .contract import adaln_modulate

__all__ = ["adaln_modulate"]

operation(
    "adaln_modulate",
    functions=[adaln_modulate],
    cost=costs.cost,
)
