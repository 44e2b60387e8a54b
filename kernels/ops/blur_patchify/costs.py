"""What the operation has to move."""

from ..common.registry import Cost


def cost(*, pixels: int, patches: int, patch_size: int, itemsize: int = 2) -> Cost:
    """For pictures of `pixels` in all that become `patches`. uint8 colours are read and patches are written; there is
    no backward pass.
    """
    return Cost(3 * pixels + patches * patch_size**2 * 3 * itemsize)
