"""Triton kernels of `adaln_modulate` and the functions that launch them; contract.py says what they compute.

A thread holds 8 neighbouring numbers. A program takes one row at a time, or several where rows are short.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..common.optional_triton import LAUNCH, NEEDS_LIMITS, tl, triton
from ..common.strides import rows_dense, stride_of

FORWARD_ROWS = 8
"""Rows of a program going forward, for which weight and bias are read once."""
ROWS_OF_PROGRAM = 32
"""Rows of a program going backward. Always the same number, so that the order of the sums is the same on every GPU."""


class Norm(NamedTuple):
    """A LayerNorm: weight and bias [W], or None for one without, and what is added to the variance."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


class Needs(NamedTuple):
    """Which gradients are wanted: of the hidden states, of scale, of the norm's weight and bias."""

    x: bool
    scale: bool
    affine: bool


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
    residual,  # [N, W], added to the gradient of x; or None
    shift,  # [N, W], where the forward result is wanted again in `forward_out`; or None
    for_x,  # from here on: outputs, each of them None where nobody wants it
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
    """How many programs the backward kernel has, each of which leaves a partial sum."""
    return int(triton.cdiv(rows, ROWS_OF_PROGRAM))


def launch_modulate(x: Tensor, shift: Tensor, scale: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """The forward pass on x, shift and scale [N, W]; the result has `dtype`."""
    x, shift, scale = map(rows_dense, (x, shift, scale))
    out = x.new_empty(tuple(x.shape), dtype=dtype)
    tile = _tile(x.shape[1])
    tile["STEPS"] = max(1, FORWARD_ROWS // tile["ROWS"])
    adaln_modulate_forward[(triton.cdiv(len(x), tile["ROWS"] * tile["STEPS"]),)](
        *(x, shift, scale, norm.weight, norm.bias, out),
        *(len(x), x.stride(0), shift.stride(0), scale.stride(0), norm.eps),
        **tile,
        **LAUNCH,
    )
    return out


def launch_into(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    norm: Norm,
    *,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
    for_x: Tensor | None = None,
    for_shift: Tensor | None = None,
    for_scale: Tensor | None = None,
    forward_out: Tensor | None = None,
    partials: Tensor | None = None,
) -> None:
    """The backward pass, written into tensors of the caller, any of which may be absent.

    Args:
        grad: [N, W], of the result.
        residual: [N, W], added to the gradient of x.
        shift: [N, W]; with `forward_out`, into which the forward result is then written once more.
        for_x, for_shift, for_scale: [N, W], the gradients; the last two may be chunks of one buffer.
        partials: fp32 [programs_of(N), 2 or more, W]. Its first two rows of each program become that program's sums for
            the gradients of the norm's weight and bias.
    """
    grad, x, scale = map(rows_dense, (grad, x, scale))
    residual, shift = rows_dense(residual), rows_dense(shift)
    tile = _tile(x.shape[1])
    tile["STEPS"] = ROWS_OF_PROGRAM // tile["ROWS"]
    # With other needs than these two, the kernel would spill at 80 registers.
    everything = x.dtype.itemsize == 2 and all(t is not None for t in (for_x, for_scale, forward_out))
    limited = NEEDS_LIMITS and (residual is None or everything)
    strides = (stride_of(t) for t in (residual, shift, for_shift, for_scale, partials))
    adaln_modulate_backward[(programs_of(len(x)),)](
        *(grad, x, scale, norm.weight, norm.bias, residual, shift),
        *(for_x, for_shift, for_scale, forward_out, partials),
        *(len(x), grad.stride(0), x.stride(0), scale.stride(0), *strides, norm.eps),
        **tile,
        maxnreg=80 if limited else None,
        **LAUNCH,
    )


def launch_modulate_backward(
    grad: Tensor, x: Tensor, scale: Tensor, norm: Norm, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of scale, and of weight and bias together [2, W] fp32; those not wanted have no elements."""
    for_x = x.new_empty(tuple(x.shape) if needs.x else 0)
    for_scale = scale.new_empty(tuple(scale.shape) if needs.scale else 0)
    partials = x.new_empty((programs_of(len(x)), 2, x.shape[1]), dtype=torch.float32) if needs.affine else None
    launch_into(
        *(grad, x, scale, norm),
        for_x=for_x if needs.x else None,
        for_scale=for_scale if needs.scale else None,
        partials=partials,
    )
    return for_x, for_scale, x.new_empty(0, dtype=torch.float32) if partials is None else partials.sum(0)
