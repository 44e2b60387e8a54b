"""Cross-entropy of a projection onto the vocabulary whose logits are never all in memory."""

from .contract import fused_linear_cross_entropy

__all__ = ["fused_linear_cross_entropy"]
