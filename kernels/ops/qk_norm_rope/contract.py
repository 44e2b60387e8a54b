"""RMS normalisation of each head of queries and keys, then rotary position embedding: one launch each way.

Symbols: T tokens, H query heads, Hkv key heads, D numbers per head (even).

    hat = round(x / sqrt(mean(x^2) + eps))      statistics in fp32, rounded to the dtype of x
    y   = round(hat * weight)                   rounded again, as the eager product is
    (u, v) -> (u cos - v sin, v cos + u sin)    halves of y, in fp32, one rounding at the store

Kept for the backward pass: the arguments, nothing else. The sums that the backward pass needs anyway give the norm once
more. Gradients of the weights are summed in each program and then, by the last programs to finish, over programs in a
fixed order, so two runs give the same bits.

Why not Liger or torch: Liger has the norm and the rotation apart, so each of them reads and writes q and k, and its
rotation takes [B, H, T, D] with one table per batch. Eager torch is 52 kernels and 16 times the bytes per layer.
"""

import torch
from torch import Tensor

from ..common.arguments import (
    expect,
    expect_floating,
    expect_no_gradient,
    expect_number,
    expect_shape,
    expect_tensors,
)
from ..common.implementation import implementation
from ..common.torch_op import torch_op
from ..rms_norm.contract import normalise, normalise_backward, reciprocal_norm
from .kernels import launch_backward, launch_forward


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of x [T, H, D]: (u, v) -> (u cos - v sin, v cos + u sin)."""
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:].neg(), x[..., :half]), dim=-1)
    return torch.addcmul(x * cos, turned, sin)


def _rotate_backward(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of x in `_rotate`, for that of its result."""
    half = grad.shape[-1] // 2
    g = grad * sin
    return torch.addcmul(torch.cat((g[..., half:], g[..., :half].neg()), dim=-1), grad, cos)


def reference(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `launch_forward`, in plain torch, for any device and dtype."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)

    def one(x: Tensor, weight: Tensor) -> Tensor:
        hat, rstd = normalise(x, eps)
        scaled = hat.mul_(weight) if weight.dtype == hat.dtype else (hat * weight).to(x.dtype)
        return _rotate(scaled.to(rstd.dtype), cos, sin).to(x.dtype).contiguous()

    return one(q, q_weight), one(k, k_weight)


def reference_backward(
    grad_q: Tensor,
    grad_k: Tensor,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, of k, and of both weights [D]; the latter have no elements unless they are needed."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)

    def one(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        rstd = reciprocal_norm(x, eps)
        g = _rotate_backward(grad.to(rstd.dtype), cos, sin)
        if need_weights:
            grad_weight = (x.to(rstd.dtype) * rstd).mul_(g).flatten(0, -2).sum(0).to(weight.dtype)
        else:
            grad_weight = weight.new_empty(0)
        return normalise_backward(g.mul_(weight), x, rstd).to(x.dtype).contiguous(), grad_weight

    dq, dq_weight = one(grad_q, q, q_weight)
    dk, dk_weight = one(grad_k, k, k_weight)
    return dq, dk, dq_weight, dk_weight


@torch_op("qk_norm_rope")
def _op(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    compute = launch_forward if implementation(q) == "triton" else reference
    return compute(q, k, q_weight, k_weight, cos, sin, eps)


@_op.register_fake
def _(q, k, q_weight, k_weight, cos, sin, eps):
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch_op("qk_norm_rope_backward")
def _backward_op(
    grad_q: Tensor,
    grad_k: Tensor,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = launch_backward if implementation(q) == "triton" else reference_backward
    return compute(grad_q, grad_k, q, k, q_weight, k_weight, cos, sin, eps, need_weights)


@_backward_op.register_fake
def _(grad_q, grad_k, q, k, q_weight, k_weight, cos, sin, eps, need_weights):
    size = q.shape[-1] if need_weights else 0
    return q.new_empty(q.shape), k.new_empty(k.shape), q_weight.new_empty(size), k_weight.new_empty(size)


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad_q: Tensor, grad_k: Tensor):
    need = ctx.needs_input_grad[:4]
    grads = _backward_op(grad_q, grad_k, *ctx.saved_tensors, ctx.eps, need[2] or need[3])
    return *(grad if wanted else None for grad, wanted in zip(grads, need, strict=True)), None, None, None


_op.register_autograd(_differentiate, setup_context=_save)


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Normalise each head of q and k, scale by the weights, rotate.

    Args:
        q: [T, H, D]; k: [T, Hkv, D] in the dtype of q; D even. Views are read in place when a head's numbers lie side
            by side, e.g. slices of one fused projection.
        q_weight, k_weight: [D].
        cos, sin: [T, D], usually fp32, both halves equal (the kernels read the first); they get no gradient and must
            not ask for one.
        eps: added to the mean square. Rounding: statistics in fp32, cast to the dtype of q before the weight.

    Returns:
        (q, k), same shapes and dtypes, contiguous.

    Raises:
        ValueError: a shape, dtype or device that does not fit; the message starts with the argument's name.
    """
    expect_tensors(q=q, k=k, q_weight=q_weight, k_weight=k_weight, cos=cos, sin=sin)
    expect_number("eps", eps)
    expect(q.dim() == 3 and q.shape[-1] > 0 and q.shape[-1] % 2 == 0, "q", "[T, H, D] with even D", q.shape)
    tokens, _, dim = q.shape
    fits = k.dim() == 3 and k.shape[0] == tokens and k.shape[-1] == dim
    expect(fits, "k", [tokens, "Hkv", dim], k.shape)
    expect_shape("q_weight", q_weight, dim)
    expect_shape("k_weight", k_weight, dim)
    expect_shape("cos", cos, tokens, dim)
    expect_shape("sin", sin, tokens, dim)
    expect_floating(q.device, q=q, k=k, q_weight=q_weight, k_weight=k_weight, cos=cos, sin=sin)
    expect_no_gradient(cos=cos, sin=sin)
    expect(k.dtype == q.dtype, "k", f"the dtype of q, {q.dtype}", k.dtype)
    return _op(q, k, q_weight, k_weight, cos, sin, float(eps))
