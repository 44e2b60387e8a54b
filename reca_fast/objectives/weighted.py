"""The loss of a step: L = reca * L_reca + t2i * L_t2i + i2t * L_i2t, each L a mean over the tokens of the step.

The tokens of a step are those of all its packs, in all processes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from reca_fast.config import LossWeights


def weighted_loss(sums: Mapping[str, Tensor], counts: Mapping[str, int], weights: LossWeights) -> Tensor:
    """What one batch adds to the loss of the step, 0-d.

    Args:
        sums: task -> sum of the losses of its tokens in this batch.
        counts: task -> number of its tokens in the whole step, all packs and processes together.
        weights: `RunConfig.loss`.
    """
    # The sum of a task without tokens is 0. It is added all the same, so that its weights get a gradient of zero and
    # not none at all.
    terms = [getattr(weights, task) * total / max(1, counts[task]) for task, total in sums.items()]
    return torch.stack(terms).sum()
