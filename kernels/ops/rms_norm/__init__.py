"""Root-mean-square normalisation."""

from ..common.registry import operation
from . import costs
from .contract import rms_norm

__all__ = ["rms_norm"]

operation(
    "rms_norm",
    functions=[rms_norm],
    cost=costs.cost,
    computed_by="liger",
)
