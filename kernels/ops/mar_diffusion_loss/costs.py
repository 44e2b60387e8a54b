"""What the two operations have to move."""

from ..common.registry import Cost


def cost(*, rows: int, channels: int, itemsize: int = 2) -> Cost:
    """For `rows` of `channels` numbers: `mar_noise` reads x0 and writes x_t; `mar_diffusion_loss` reads the prediction,
    which is twice as wide, and writes its gradient.
    """
    return Cost(itemsize * rows * channels * (1 + 1 + 2 + 2))
