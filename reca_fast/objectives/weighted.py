"""L = reca * L_reca + t2i * L_t2i + i2t * L_i2t, each term a mean over the tokens of the whole global batch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reca_fast.config import LossWeights


def weighted_loss(sums: Mapping[str, Tensor], counts: Mapping[str, int], weights: LossWeights) -> Tensor:
    """This batch's share of the objective, 0-d.

    Args:
        sums: task -> sum of per-token losses in this batch.
        counts: task -> number of tokens in the GLOBAL batch (all packs, all processes), as the authors reduce it.
    """
    # A task without tokens has a sum of 0; it stays in the graph, so that its weights get a zero gradient, not none.
    terms = [getattr(weights, task) * total / max(1, counts[task]) for task, total in sums.items()]
    return torch.stack(terms).sum()
