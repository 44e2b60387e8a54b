"""What a block has to move and multiply, and the FLOPs of its two operations of torch."""

from math import prod

from ..common.registry import Cost


def cost(*, rows: int, width: int, itemsize: int = 2) -> Cost:
    """For `rows` of `width` numbers.

    The elementwise passes between the products move 8 rows of activations forward and 15 backward. Two products of
    rows x width x width forward, four backward.
    """
    return Cost(itemsize * rows * width * (8 + 15), 3 * 2 * 2.0 * rows * width**2)


def block_flops(hidden, modulation, ln_weight, ln_bias, weight, *_, **__) -> int:
    """Both linear layers."""
    return 2 * 2 * hidden[0] * prod(weight)


def block_backward_flops(grad, hidden, modulation, ln_weight, ln_bias, weight, *rest, **_) -> int:
    """Two products for the gradients of what the layers read, one for that of each weight that needs it."""
    need = rest[-1]
    return 2 * hidden[0] * prod(weight) * (2 + need[4] + need[6])
