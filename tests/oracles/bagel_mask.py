"""Which token of a packed BAGEL sequence may see which: the authors' rule, written from its one sentence."""

import torch
from torch import Tensor

FULL, NOISE = 1, 2
"""Modes of a split, by their numbers in the authors' packs; the third, 0, is causal."""


def mask_rule(samples: list[list[tuple[int, int]]], past: list[int]) -> Tensor:
    """bool [S, past + S]: may query i see key j? `samples` holds (length, mode) of every split of every sample, `past`
    the number of keys of each sample that exist already; these come first, and every row of their sample sees them.

    i sees j iff they are in one sample, and j <= i or both in one full or noise split, and not: j in a noise split
    that i is not in.
    """
    rows = [
        (sample, split, mode)
        for sample, splits in enumerate(samples)
        for split, (length, mode) in enumerate(splits)
        for _ in range(length)
    ]
    before = [sample for sample, count in enumerate(past) for _ in range(count)]

    def sees(i: int, j: int) -> bool:
        (sample_i, split_i, _), (sample_j, split_j, mode_j) = rows[i], rows[j]
        together = split_i == split_j and mode_j in (FULL, NOISE)
        return sample_i == sample_j and (j <= i or together) and not (mode_j == NOISE and split_i != split_j)

    return torch.tensor(
        [[rows[i][0] == of for of in before] + [sees(i, j) for j in range(len(rows))] for i in range(len(rows))]
    )
