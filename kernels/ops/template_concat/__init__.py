"""The decoder"s input rows, put together from text, visual and latent rows."""

from ..common.registry import operation
from . import costs
from .contract import template_concat

__all__ = ["template_concat"]

operation(
    "template_concat",
    functions=[template_concat],
    cost=costs.cost,
)
