"""Per-head RMS normalisation of queries and keys, then rotary embedding, as one operation.

The eager chain writes every intermediate (norm, weight, two halves, rotation, sum) for q and for k; here the backward
pass needs only the projections themselves and one reciprocal norm per head.
"""

import torch
from torch import Tensor

from .rms_norm import normalise, normalise_backward


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of x [T, H, D]: (u, v) -> (u cos - v sin, v cos + u sin)."""
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:].neg(), x[..., :half]), dim=-1)
    return torch.addcmul(x * cos, turned, sin)


def _rotate_backward(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Transpose of `_rotate`."""
    half = grad.shape[-1] // 2
    g = grad * sin
    return torch.addcmul(torch.cat((g[..., half:], g[..., :half].neg()), dim=-1), grad, cos)


def _forward(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    hat, rstd = normalise(x, eps)
    scaled = (hat * weight).to(x.dtype)
    return _rotate(scaled.to(rstd.dtype), cos, sin).to(x.dtype), rstd


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, cos: Tensor, sin: Tensor, need_weight: bool
) -> tuple[Tensor, Tensor | None]:
    g = _rotate_backward(grad.to(rstd.dtype), cos, sin)
    grad_weight = (x.to(rstd.dtype) * rstd).mul_(g).flatten(0, -2).sum(0).to(weight.dtype) if need_weight else None
    return normalise_backward(g.mul_(weight), x, rstd).to(x.dtype), grad_weight


class _QKNormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, q_weight, k_weight, cos, sin, eps):
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        q_out, q_rstd = _forward(q, q_weight, cos, sin, eps)
        k_out, k_rstd = _forward(k, k_weight, cos, sin, eps)
        ctx.save_for_backward(q, k, q_weight, k_weight, q_rstd, k_rstd, cos, sin)
        return q_out, k_out

    @staticmethod
    def backward(ctx, grad_q, grad_k):
        q, k, q_weight, k_weight, q_rstd, k_rstd, cos, sin = ctx.saved_tensors
        need = ctx.needs_input_grad
        dq, dqw = _backward(grad_q, q, q_weight, q_rstd, cos, sin, need[2])
        dk, dkw = _backward(grad_k, k, k_weight, k_rstd, cos, sin, need[3])
        return dq, dk, dqw, dkw, None, None, None


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Normalise each head of q and k, scale by the weights, rotate.

    Args:
        q: [T, H, D]; k: [T, Hkv, D]; D even.
        q_weight, k_weight: [D].
        cos, sin: [T, D] fp32, both halves equal (half-split rotary); they get no gradient.
        eps: added to the mean square. Rounding: statistics in fp32, cast to the dtype of q before the weight.

    Returns:
        (q, k), same shapes and dtypes.
    """
    tokens, dim = q.shape[0], q.shape[-1]
    if k.shape[0] != tokens or k.shape[-1] != dim:
        raise ValueError(f"k: expected [{tokens}, Hkv, {dim}], got {list(k.shape)}")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight.shape != (dim,):
            raise ValueError(f"{name}: expected [{dim}], got {list(weight.shape)}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (tokens, dim):
            raise ValueError(f"{name}: expected [{tokens}, {dim}], got {list(table.shape)}")
    return _QKNormRope.apply(q, k, q_weight, k_weight, cos, sin, eps)
