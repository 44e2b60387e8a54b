"""What the operation has to move."""

from ..common.registry import Cost


def cost(*, rows: int, width: int, itemsize: int = 2) -> Cost:
    """For `rows` of `width` numbers.

    Forward: hidden states, shift and scale are read, the result is written. Backward: the gradient, hidden states and
    scale are read, the gradients of hidden states and scale are written; the gradient of shift is the incoming one.
    """
    return Cost(itemsize * rows * width * (4 + 5))
