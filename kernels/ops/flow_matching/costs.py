"""What the two operations have to move."""

from ..common.registry import Cost


def cost(*, tokens: int, channels: int, itemsize: int = 2) -> Cost:
    """For `tokens` rows of `channels` numbers, noise from a seed.

    `flow_interpolate` reads fp32 latents and timesteps and writes x_t. `flow_matching_loss` reads fp32 latents and the
    prediction and writes the prediction's gradient. x_t, prediction and gradient have `itemsize` bytes a number.
    """
    numbers = tokens * channels
    return Cost((4 + itemsize) * numbers + 4 * tokens + (4 + 2 * itemsize) * numbers)
