"""Pictures to patches: a resize down and up again, normalisation, and the cut into patches."""

from ..common.registry import operation
from . import costs
from .contract import blur_patchify

__all__ = ["blur_patchify"]

operation(
    "blur_patchify",
    functions=[blur_patchify],
    cost=costs.cost,
)
