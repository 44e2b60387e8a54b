"""The draw of a pack that stands for all: how much a model computes may depend on what is drawn for a step."""

from collections.abc import Callable
from typing import Any

import torch

from reca_fast.models import Batch
from reca_fast.randomness import draw_of_pack

DRAWS = 100


def typical_batch(collate: Callable[[torch.Generator], Batch], flops: Callable[[Any], float], number: int) -> Batch:
    """The batch of a pack for which what is drawn costs about as much as on average.

    Of DRAWS batches it is the one whose operations come nearest to their mean; where the first two cost the same, the
    first.

    Args:
        collate: makes a batch with the random numbers of a generator.
        flops: of the model, see `Model.flops`.
        number: of the pack.
    """
    batches: list[Batch] = []
    costs: list[float] = []
    for seed in range(DRAWS):
        batches.append(collate(draw_of_pack(seed, 0, number)))
        costs.append(flops(batches[-1]))
        if costs[0] == costs[-1] and seed == 1:
            return batches[0]
    mean = sum(costs) / DRAWS
    return min(zip(costs, range(DRAWS), batches, strict=True), key=lambda each: (abs(each[0] - mean), each[1]))[2]
