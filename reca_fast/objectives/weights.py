"""L = reca * L_reca + t2i * L_t2i + i2t * L_i2t, each term a mean over the tokens of the whole global batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LossWeights:
    """The lambdas of the objective."""

    reca: float = 1.0
    """Reconstruction of the picture from its own understanding embedding (flow matching)."""
    t2i: float = 0.0
    """Text to image on captioned pictures (flow matching)."""
    i2t: float = 0.0
    """Image to text on captioned pictures (cross-entropy); needs model.freeze_und=false."""


def weighted_loss(sums: Mapping[str, Tensor], counts: Mapping[str, int], weights: LossWeights) -> Tensor:
    """This batch's share of the objective, 0-d.

    Args:
        sums: task -> sum of per-token losses in this batch.
        counts: task -> number of tokens in the GLOBAL batch (all packs, all processes), as the authors reduce it.
    """
    terms = [getattr(weights, task) * total / counts[task] for task, total in sums.items() if counts[task]]
    return torch.stack(terms).sum()
