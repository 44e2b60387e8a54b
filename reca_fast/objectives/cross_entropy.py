"""Next-token cross-entropy on the understanding side (the L_i2t term)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def next_token_loss(hidden_states: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Per-token cross-entropy [N] in fp32 or wider; hidden_states [N, D], head [V, D], labels int64 [N].

    The head runs on the labelled rows alone.
    """
    logits = F.linear(hidden_states, head)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="none")
