"""The two ends of Harmon"s MAR diffusion head: noisy latents before it, its loss behind it."""

from ..common.registry import operation
from . import costs
from .contract import mar_diffusion_loss, mar_noise

__all__ = ["mar_diffusion_loss", "mar_noise"]

operation(
    "mar_diffusion_loss",
    functions=[mar_noise, mar_diffusion_loss],
    cost=costs.cost,
)
