"""What the operation has to move."""

from ..common.registry import Cost


def cost(*, text: int, visual: int, latents: int, pictures: int, hidden_size: int, itemsize: int = 2) -> Cost:
    """For that many rows of each source, each of `hidden_size` numbers; all pictures are equally large.

    Forward: every row is read and written. The position rows of one picture are read once for all pictures, and so is
    one timestep row per picture. Backward: visual and latent rows of the gradient are read and written, and one
    timestep row per picture is written.
    """
    forward = 2 * (text + visual + latents) + (visual + latents) // max(1, pictures) + pictures
    return Cost(itemsize * hidden_size * (forward + 2 * (visual + latents) + pictures))
