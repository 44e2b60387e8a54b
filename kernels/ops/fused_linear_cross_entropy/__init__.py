"""Cross-entropy of a projection onto the vocabulary whose logits are never all in memory."""

from ..common.registry import operation
from . import costs
from .contract import fused_linear_cross_entropy

__all__ = ["fused_linear_cross_entropy"]

operation(
    "fused_linear_cross_entropy",
    functions=[fused_linear_cross_entropy],
    cost=costs.cost,
    flops={
        "fused_linear_cross_entropy": costs.loss_flops,
        "fused_linear_cross_entropy_rows": costs.rows_flops,
        "fused_linear_cross_entropy_backward": costs.backward_flops,
    },
)
