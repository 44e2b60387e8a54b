"""What the operation has to move and multiply, and the FLOPs of its two operations of torch."""

from math import prod

from ..common.registry import Cost


def cost(*, pixels: int, patches: int, patch_size: int, width: int, positions: int, itemsize: int = 2) -> Cost:
    """For pictures of `pixels` in all that become `patches` embeddings of `width` numbers.

    Forward: pictures, parameters and the position rows that are used are read, embeddings are written. Backward:
    pictures and the gradient are read; the gradients of weight and bias, and of the `positions` rows of the table, are
    written. Two products.
    """
    features = patch_size**2 * 3
    numbers = 2 * (features + 1) * width + 3 * patches * width + positions * width
    return Cost(2 * 3 * pixels + numbers * itemsize, 2 * 2.0 * patches * features * width)


def forward_flops(images, weight, *_, out_shape, **__) -> int:
    """Patches times weight."""
    return 2 * out_shape[0] * prod(weight)


def backward_flops(grad, images, ids, positions, bias_dtype, position_dtype, needed, *_, out_shape, **__) -> int:
    """The gradient of the weight, where it is needed."""
    return 2 * grad[0] * prod(out_shape[0]) if needed[0] else 0
