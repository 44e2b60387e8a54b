"""What the operation has to move."""

from ..common.registry import Cost


def cost(*, rows: int, width: int, itemsize: int = 2) -> Cost:
    """For `rows` of `width` numbers. Forward: gate and up are read and the result is written. Backward: the gradient,
    gate and up are read and two gradients are written.
    """
    return Cost(itemsize * rows * width * (3 + 5))
