"""Adaptive LayerNorm of the MAR denoiser: normalise a row, then scale and shift it by what its condition says.

    y = (hat * weight + bias) * (1 + scale) + shift        hat = (x - mean) / sqrt(variance + eps)

Symbols: N rows, W numbers per row. Everything in fp32 from the load to the one rounding at the store. Forward is one
launch: x, shift and scale in, y out. Backward is one launch: the gradient, x and scale in, the gradients of x and scale
out; that of shift is the upstream gradient itself and nobody copies it. Gradients of weight and bias are summed per
program, then over programs in a fixed order, so two runs give the same bits.

Saved for backward: x, scale, weight, bias. Mean and variance are formed again from the row, which is read anyway.

Why not Liger or torch: Liger's LayerNorm knows neither scale nor shift, so its result is written and read once more,
and its backward writes a gradient that two more kernels read; the eager chain under autocast keeps y in fp32.
"""

import torch
from torch import Tensor

from ..common.arguments import expect, expect_floating, expect_number, expect_shape, expect_tensors
from ..common.implementation import runs_triton
from ..common.optional_triton import LAUNCH, NEEDS_LIMITS, tl, triton
from ..common.strides import rows_dense, stride_of
from ..common.torch_op import torch_op

FORWARD_ROWS = 8  # of a program: weight and bias are read once for them
ROWS_OF_PROGRAM = 32  # backward: fixed, so that the sums do not depend on the GPU


# References


def normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(hat, 1 / standard deviation [..., 1]) in fp32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return centred * rstd, rstd


def _affine(hat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    hat = hat if weight is None else hat * weight.to(hat.dtype)
    return hat if bias is None else hat + bias.to(hat.dtype)


def reference_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """The operation in plain torch: layer norm of x, times 1 + scale, plus shift; the result has the given dtype."""
    hat = normalise(x, eps)[0]
    y = _affine(hat, weight, bias) * (1 + scale.to(hat.dtype)) + shift.to(hat.dtype)
    return y.to(dtype).contiguous()


def reference_modulate_backward(
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
    """Gradients of x, scale, and of weight and bias together [2, W] fp32 (not needed: of no elements)."""
    hat, rstd = normalise(x, eps)
    g = grad.to(hat.dtype)
    for_x, for_scale, for_affine = (like.new_empty(0) for like in (x, scale, hat))
    if need_scale:
        for_scale = (g * _affine(hat, weight, bias)).to(scale.dtype).contiguous()
    g = g * (1 + scale.to(g.dtype))
    if need_affine:
        for_affine = torch.stack(((g * hat).sum(0), g.sum(0)))
    if need_x:
        g = g if weight is None else g * weight.to(g.dtype)
        for_x = (g - g.mean(-1, keepdim=True) - hat * (g * hat).mean(-1, keepdim=True)) * rstd
        for_x = for_x.to(x.dtype).contiguous()
    return for_x, for_scale, for_affine


# Kernels: a thread holds 8 neighbouring numbers, a program one row (several when rows are short).


@triton.jit
def _normalised(x, mask, eps, W: tl.constexpr):
    centred = tl.where(mask, x - tl.sum(x, axis=1)[:, None] / W, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / W + eps)[:, None]
    return centred * rstd, rstd


@triton.jit
def adaln_modulate_forward(
    x,
    shift,
    scale,
    weight,
    bias,
    out,
    rows,
    x_stride,
    shift_stride,
    scale_stride,
    eps,
    W: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)[None, :]
    live = column < W
    if weight is not None:
        w = tl.load(weight + column, mask=live, other=0.0)
    if bias is not None:
        b = tl.load(bias + column, mask=live, other=0.0)
    first = tl.program_id(0) * (ROWS * STEPS)
    for step in range(STEPS):
        row = (first + step * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        mask = (row < rows) & live
        y = tl.load(x + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
        y, _ = _normalised(y, mask, eps, W)
        if weight is not None:
            y *= w.to(tl.float32)
        if bias is not None:
            y += b.to(tl.float32)
        y *= 1.0 + tl.load(scale + row * scale_stride + column, mask=mask, other=0.0).to(tl.float32)
        y += tl.load(shift + row * shift_stride + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + row * W + column, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def adaln_modulate_backward(
    grad,
    x,
    scale,
    weight,
    bias,
    residual,  # [N, W], added to the gradient of x, or None
    shift,  # with `forward_out`: the forward result is formed again for a weight gradient; or None
    for_x,  # these five: outputs, or None
    for_shift,
    for_scale,
    forward_out,
    partials,  # [programs, partial_stride]: sums for weight, then for bias
    rows,
    grad_stride,
    x_stride,
    scale_stride,
    residual_stride,
    shift_stride,
    for_shift_stride,
    for_scale_stride,
    partial_stride,
    eps,
    W: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)[None, :]
    live = column < W
    if weight is not None:
        w = tl.load(weight + column, mask=live, other=0.0)
    if bias is not None:
        b = tl.load(bias + column, mask=live, other=0.0)
    for_weight = tl.zeros((ROWS, COLUMNS), tl.float32)
    for_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.program_id(0) * (ROWS * STEPS)
    for step in range(STEPS):
        row = (first + step * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        mask = (row < rows) & live
        numbers = tl.load(x + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + row * grad_stride + column, mask=mask, other=0.0).to(tl.float32)
        factor = 1.0 + tl.load(scale + row * scale_stride + column, mask=mask, other=0.0).to(tl.float32)
        hat, rstd = _normalised(numbers, mask, eps, W)
        if for_shift is not None:
            tl.store(for_shift + row * for_shift_stride + column, g.to(for_shift.dtype.element_ty), mask=mask)
        if for_scale is not None or forward_out is not None:
            scaled = hat
            if weight is not None:
                scaled *= w.to(tl.float32)
            if bias is not None:
                scaled += b.to(tl.float32)
            if for_scale is not None:
                g_scale = (g * scaled).to(for_scale.dtype.element_ty)
                tl.store(for_scale + row * for_scale_stride + column, g_scale, mask=mask)
            if forward_out is not None:
                add = tl.load(shift + row * shift_stride + column, mask=mask, other=0.0).to(tl.float32)
                y = (scaled * factor + add).to(forward_out.dtype.element_ty)
                tl.store(forward_out + row * W + column, y, mask=mask)
        g *= factor
        if partials is not None:
            for_weight += g * hat
            for_bias += g
        if for_x is not None:
            if weight is not None:
                g *= w.to(tl.float32)
            along = tl.sum(g * hat, axis=1)[:, None] / W
            dx = (g - tl.sum(g, axis=1)[:, None] / W - hat * along) * rstd
            if residual is not None:
                dx += tl.load(residual + row * residual_stride + column, mask=mask, other=0.0).to(tl.float32)
            tl.store(for_x + row * W + column, dx.to(for_x.dtype.element_ty), mask=mask)
    if partials is not None:
        place = partials + tl.program_id(0).to(tl.int64) * partial_stride + tl.arange(0, COLUMNS)
        inside = tl.arange(0, COLUMNS) < W
        tl.store(place, tl.sum(for_weight, axis=0), mask=inside)
        tl.store(place + W, tl.sum(for_bias, axis=0), mask=inside)


def _tile(width: int) -> dict[str, int]:
    columns = triton.next_power_of_2(width)
    rows = min(ROWS_OF_PROGRAM, max(1, 1024 // columns))
    return {"W": width, "COLUMNS": columns, "ROWS": rows, "num_warps": min(32, max(1, rows * columns // 256))}


def programs_of(rows: int) -> int:
    """Programs of a backward kernel, i.e. partial sums."""
    return int(triton.cdiv(rows, ROWS_OF_PROGRAM))


def launch_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """The same by the Triton kernel, one launch."""
    x, shift, scale = map(rows_dense, (x, shift, scale))
    out = x.new_empty(tuple(x.shape), dtype=dtype)
    tile = _tile(x.shape[1])
    tile["STEPS"] = max(1, FORWARD_ROWS // tile["ROWS"])
    adaln_modulate_forward[(triton.cdiv(len(x), tile["ROWS"] * tile["STEPS"]),)](
        *(x, shift, scale, weight, bias, out, len(x), x.stride(0), shift.stride(0), scale.stride(0), eps),
        **tile,
        **LAUNCH,
    )
    return out


def launch_into(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
    for_x: Tensor | None = None,
    for_shift: Tensor | None = None,
    for_scale: Tensor | None = None,
    forward_out: Tensor | None = None,
    partials: Tensor | None = None,
) -> None:
    """The backward kernel with outputs of the caller's: `for_shift`, `for_scale` may be chunks of one buffer."""
    grad, x, scale = map(rows_dense, (grad, x, scale))
    residual, shift = rows_dense(residual), rows_dense(shift)
    tile = _tile(x.shape[1])
    tile["STEPS"] = ROWS_OF_PROGRAM // tile["ROWS"]
    # By itself, and in a block that wants everything; with other needs, 80 registers would spill.
    everything = x.dtype.itemsize == 2 and all(t is not None for t in (for_x, for_scale, forward_out))
    limited = NEEDS_LIMITS and (residual is None or everything)
    strides = (stride_of(t) for t in (residual, shift, for_shift, for_scale, partials))
    adaln_modulate_backward[(programs_of(len(x)),)](
        *(grad, x, scale, weight, bias, residual, shift, for_x, for_shift, for_scale, forward_out, partials),
        *(len(x), grad.stride(0), x.stride(0), scale.stride(0), *strides, eps),
        **tile,
        maxnreg=80 if limited else None,
        **LAUNCH,
    )


def launch_modulate_backward(
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
    for_x = x.new_empty(tuple(x.shape) if need_x else 0)
    for_scale = scale.new_empty(tuple(scale.shape) if need_scale else 0)
    partials = x.new_empty((programs_of(len(x)), 2, x.shape[1]), dtype=torch.float32) if need_affine else None
    launch_into(
        *(grad, x, scale, weight, bias, eps),
        for_x=for_x if need_x else None,
        for_scale=for_scale if need_scale else None,
        partials=partials,
    )
    return for_x, for_scale, x.new_empty(0, dtype=torch.float32) if partials is None else partials.sum(0)


# Registration


@torch_op("adaln_modulate")
def _op(x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    run = launch_modulate if runs_triton(x) else reference_modulate
    return run(x, shift, scale, weight, bias, eps, x.dtype)


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
    run = launch_modulate_backward if runs_triton(x) else reference_modulate_backward
    return run(grad, x, scale, weight, bias, eps, need_x, need_scale, need_affine)


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
