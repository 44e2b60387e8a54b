"""What the loss has to move and multiply, and the FLOPs of its three operations of torch.

The FLOP formulas take shapes, which do not say how many rows are ignored: they count every row.
"""

from collections.abc import Sequence
from math import prod

from ..common.registry import Cost


def cost(*, rows: int, hidden_size: int, classes: int, itemsize: int = 2) -> Cost:
    """For `rows` that are not ignored and `classes` inside `vocab_range`.

    Hidden states and weight are read, the gradients of both are written. Three products of rows x hidden_size x
    classes.
    """
    return Cost(2 * itemsize * hidden_size * (rows + classes), 6.0 * rows * hidden_size * classes)


def _product(rows: int, weight: Sequence[int]) -> int:
    """rows x weight, each multiply-add as 2."""
    return 2 * rows * prod(weight)


def loss_flops(hidden, weight, bias, labels, row_weight, mean, needs, start, stop, *_, **__) -> int:
    """The logits, and a product each for the gradients of hidden states and weight where they are needed."""
    return _product(hidden[0], (stop - start, weight[1])) * (1 + needs[0] + needs[1])


def rows_flops(hidden, weight, bias, labels, start, stop, *_, **__) -> int:
    """The logits alone."""
    return _product(hidden[0], (stop - start, weight[1]))


def backward_flops(hidden, weight, bias, labels, factor, needs, start, stop, *_, **__) -> int:
    """As `loss_flops`: the logits are computed again."""
    return _product(hidden[0], (stop - start, weight[1])) * (1 + needs[0] + needs[1])
