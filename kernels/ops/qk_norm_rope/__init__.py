"""Normalisation of queries and keys with rotary position embedding."""

from ..common.registry import operation
from . import costs
from .contract import qk_norm_rope

__all__ = ["qk_norm_rope"]

operation(
    "qk_norm_rope",
    functions=[qk_norm_rope],
    cost=costs.cost,
)
