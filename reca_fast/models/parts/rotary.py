"""Rotary position embedding: the angles by which attention turns its queries and keys."""

import torch
from torch import Tensor


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles of N tokens, for `rotate` and `reca_fast.kernels.qk_norm_rope`.

    The halves of a head are turned against each other (the "half-split" form): numbers j and j + head_dim/2 by
    position / theta**(2j / head_dim).

    Args:
        positions: int64 [N].
        head_dim: numbers in a head.
        theta: the base of the frequencies.
        dtype: of the arithmetic and of the result.

    Returns:
        cos and sin, [N, head_dim] each, the second half equal to the first.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=dtype, device=positions.device) / head_dim
    angles = positions.to(dtype)[:, None] / theta**exponents
    angles = torch.cat((angles, angles), dim=1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [N, heads, head_dim] turned by their positions; the arithmetic has the dtype of the table.

    Args:
        cos, sin: of `rotary_table`, [N, head_dim].
    """
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:].neg(), x[..., :half]), dim=-1)
    return torch.addcmul(x * cos.unsqueeze(-2), turned, sin.unsqueeze(-2)).to(x.dtype)
