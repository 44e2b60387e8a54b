"""Latents of a picture as BAGEL's tokens: squares of p x p latent cells, row by row."""

from torch import Tensor


def patchify_latents(latents: Tensor, p: int = 2) -> Tensor:
    """Latents [z, h, w] -> tokens [h/p * w/p, p*p*z].

    In a token, the number of channel c at row a and column b of the square is feature (a*p + b)*z + c.
    """
    z, height, width = latents.shape
    grid = latents.view(z, height // p, p, width // p, p)
    return grid.permute(1, 3, 2, 4, 0).reshape(-1, p * p * z)


def unpatchify_latents(tokens: Tensor, rows: int, cols: int, p: int, z: int) -> Tensor:
    """Tokens [rows*cols, p*p*z] -> latents [z, rows*p, cols*p]: the inverse of `patchify_latents`."""
    return tokens.view(rows, cols, p, p, z).permute(4, 0, 2, 1, 3).reshape(z, rows * p, cols * p)
