"""Next-token cross-entropy on the understanding side (the L_i2t term)."""

from torch import Tensor

from reca_fast.kernels import fused_linear_cross_entropy
from reca_fast.kernels.common.arguments import Reduction


def next_token_loss(hidden_states: Tensor, head: Tensor, labels: Tensor, reduction: Reduction = "none") -> Tensor:
    """Per-token cross-entropy [N] ("none") or its sum, in fp32 or wider; hidden_states [N, D], head [V, D], labels
    int64 [N].

    The head runs on the labelled rows alone, in chunks: logits never exist as a whole. "sum" forms the gradients in
    the same pass; "none" has to compute the logits again in backward.
    """
    losses: Tensor = fused_linear_cross_entropy(hidden_states, head, labels, reduction=reduction)
    return losses
