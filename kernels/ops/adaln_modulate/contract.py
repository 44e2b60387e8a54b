"""Adaptive LayerNorm of the MAR denoiser: normalise a row, then scale and shift it by what its condition says.

    y = (hat * weight + bias) * (1 + scale) + shift        hat = (x - mean) / sqrt(variance + eps)

Symbols: N rows of W numbers, x [N, W]. All arithmetic is fp32; y is rounded once, when it is stored.

Forward is one launch that reads x, shift and scale and writes y. Backward is one launch that reads the gradient, x and
scale and writes the gradients of x and scale. The gradient of shift is the gradient of y itself, which is passed on
without a copy. Gradients of weight and bias are summed in each program, then over programs in a fixed order, so two
runs give the same bits.

Kept for the backward pass: x, scale, weight, bias. Mean and variance are computed again from the row, which has to be
read anyway.

Why not Liger or torch: Liger's LayerNorm knows neither scale nor shift, so its result is written and read once more,
and its backward pass writes a gradient that two more kernels read. Eager torch under autocast keeps y in fp32.
"""

import torch
from torch import Tensor

from ..common.arguments import expect, expect_floating, expect_number, expect_shape, expect_tensors
from ..common.implementation import runs_triton
from ..common.torch_op import torch_op
from .kernels import Needs, Norm, launch_modulate, launch_modulate_backward


def normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows with mean 0 and variance 1, and one over their standard deviations [..., 1]; in fp32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return centred * rstd, rstd


def _affine(hat: Tensor, norm: Norm) -> Tensor:
    hat = hat if norm.weight is None else hat * norm.weight.to(hat.dtype)
    return hat if norm.bias is None else hat + norm.bias.to(hat.dtype)


def reference_modulate(x: Tensor, shift: Tensor, scale: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """The forward pass in plain torch; the result has `dtype`."""
    hat = normalise(x, norm.eps)[0]
    y = _affine(hat, norm) * (1 + scale.to(hat.dtype)) + shift.to(hat.dtype)
    return y.to(dtype).contiguous()


def reference_modulate_backward(
    grad: Tensor, x: Tensor, scale: Tensor, norm: Norm, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of scale, and of weight and bias together [2, W] fp32; those not wanted have no elements."""
    hat, rstd = normalise(x, norm.eps)
    g = grad.to(hat.dtype)
    for_x, for_scale, for_affine = (like.new_empty(0) for like in (x, scale, hat))
    if needs.scale:
        for_scale = (g * _affine(hat, norm)).to(scale.dtype).contiguous()
    g = g * (1 + scale.to(g.dtype))
    if needs.affine:
        for_affine = torch.stack(((g * hat).sum(0), g.sum(0)))
    if needs.x:
        g = g if norm.weight is None else g * norm.weight.to(g.dtype)
        for_x = (g - g.mean(-1, keepdim=True) - hat * (g * hat).mean(-1, keepdim=True)) * rstd
        for_x = for_x.to(x.dtype).contiguous()
    return for_x, for_scale, for_affine


# Registration


@torch_op("adaln_modulate")
def _op(x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    compute = launch_modulate if runs_triton(x) else reference_modulate
    return compute(x, shift, scale, Norm(weight, bias, eps), x.dtype)


@_op.register_fake
def _(x, shift, scale, weight, bias, eps):
    return x.new_empty(tuple(x.shape))


@torch_op("adaln_modulate_backward")
def _backward_op(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    need_x: bool,
    need_scale: bool,
    need_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    compute = launch_modulate_backward if runs_triton(x) else reference_modulate_backward
    return compute(grad, x, scale, Norm(weight, bias, eps), Needs(need_x, need_scale, need_affine))


@_backward_op.register_fake
def _(grad, x, scale, weight, bias, eps, need_x, need_scale, need_affine):
    return (
        x.new_empty(tuple(x.shape) if need_x else 0),
        scale.new_empty(tuple(scale.shape) if need_scale else 0),
        x.new_empty((2, x.shape[1]) if need_affine else 0, dtype=torch.promote_types(x.dtype, torch.float32)),
    )


def _save(ctx, inputs, output) -> None:
    x, shift, scale, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(x, scale, weight, bias)
    ctx.shift_dtype = shift.dtype


def _differentiate(ctx, grad: Tensor):
    x, scale, weight, bias = ctx.saved_tensors
    need = ctx.needs_input_grad
    for_x = for_scale = for_weight = for_bias = None
    if need[0] or need[2] or need[3] or need[4]:
        dx, ds, both = _backward_op(grad, x, scale, weight, bias, ctx.eps, need[0], need[2], need[3] or need[4])
        for_x, for_scale = dx if need[0] else None, ds if need[2] else None
        for_weight = both[0].to(weight.dtype) if need[3] else None
        for_bias = both[1].to(bias.dtype) if need[4] else None
    return for_x, grad.to(ctx.shift_dtype) if need[1] else None, for_scale, for_weight, for_bias, None


_op.register_autograd(_differentiate, setup_context=_save)


def adaln_modulate(
    hidden_states: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """LayerNorm(hidden_states) * (1 + scale) + shift over the last dimension.

    Args:
        hidden_states: [..., W], any floating dtype; its statistics are fp32.
        shift, scale: [..., W], any floating dtype. Row views such as the chunks of a [N, 3W] projection are read in
            place.
        weight, bias: [W] of the LayerNorm, or None for one without.
        eps: added to the variance.

    Returns:
        [..., W] in the dtype of `hidden_states`, contiguous. Gradients for every tensor.

    Raises:
        ValueError: a shape, dtype or device that does not fit; the message starts with the argument's name.
    """
    expect_tensors(hidden_states=hidden_states, shift=shift, scale=scale)
    expect_number("eps", eps)
    filled = hidden_states.dim() > 0 and hidden_states.shape[-1] > 0
    expect(filled, "hidden_states", "[..., W]", hidden_states.shape)
    width = hidden_states.shape[-1]
    expect_shape("shift", shift, *hidden_states.shape)
    expect_shape("scale", scale, *hidden_states.shape)
    expect_shape("weight", weight, width)
    expect_shape("bias", bias, width)
    tensors = {"shift": shift, "scale": scale, "weight": weight, "bias": bias}
    expect_floating(hidden_states.device, hidden_states=hidden_states, **tensors)
    weight, bias = (None if x is None else x.contiguous() for x in (weight, bias))
    flat = (x if x.dim() == 2 else x.reshape(-1, width) for x in (hidden_states, shift, scale))
    return _op(*flat, weight, bias, float(eps)).view(hidden_states.shape)
