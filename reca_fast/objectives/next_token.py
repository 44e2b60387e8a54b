"""Cross-entropy of the next token of a caption, the loss of the task i2t."""

from torch import Tensor

from reca_fast.kernels import fused_linear_cross_entropy
from reca_fast.kernels.common.arguments import Reduction


def next_token_loss(hidden_states: Tensor, head: Tensor, labels: Tensor, reduction: Reduction = "none") -> Tensor:
    """Cross-entropy between the head's prediction and the labels.

    The logits are computed for some rows at a time and never held as a whole. "sum" forms the gradients in the same
    pass; "none" computes the logits a second time in the backward pass.

    Args:
        hidden_states: [N, D], the rows that have a label.
        head: [V, D], the weights of the language model's head.
        labels: int64 [N], the token that each row should predict.
        reduction: "none" or "sum".

    Returns:
        [N], or 0-d for "sum", in fp32 or wider.
    """
    losses: Tensor = fused_linear_cross_entropy(hidden_states, head, labels, reduction=reduction)
    return losses
