"""What the operation has to move."""

from ..common.registry import Cost


def cost(*, rows: int, width: int, itemsize: int = 2) -> Cost:
    """For `rows` of `width` numbers. Forward: hidden states are read and the result is written. Backward: the gradient
    and the hidden states are read and the new gradient is written. The weight is too small to count.
    """
    return Cost(itemsize * rows * width * (2 + 3))
