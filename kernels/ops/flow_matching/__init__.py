"""The two ends of flow matching: noisy latents before the model, the squared error behind it."""

from ..common.registry import operation
from . import costs
from .contract import flow_interpolate, flow_matching_loss

__all__ = ["flow_interpolate", "flow_matching_loss"]

operation(
    "flow_matching",
    functions=[flow_interpolate, flow_matching_loss],
    cost=costs.cost,
)
