"""A residual block of Harmon"s MAR denoiser."""

from ..common.registry import operation
from . import costs
from .contract import gated_residual, mar_residual_block

__all__ = ["gated_residual", "mar_residual_block"]

operation(
    "mar_residual_block",
    functions=[mar_residual_block, gated_residual],
    cost=costs.cost,
    flops={
        "mar_residual_block": costs.block_flops,
        "mar_residual_block_backward": costs.block_backward_flops,
    },
)
