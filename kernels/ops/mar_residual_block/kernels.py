"""Kernels of mar_residual_block.py that are not the modulation's: gated residual and SiLU, each with its backward.

A program takes 512 columns of a few rows, 8 neighbouring numbers per thread. Backward programs take as many rows as the
modulation's do, so that the partial sums of all of them fit one buffer.
"""

import torch
from torch import Tensor

from ..adaln_modulate.contract import ROWS_OF_PROGRAM
from ..common.optional_triton import LAUNCH, tl, triton
from ..common.strides import rows_dense, stride_of

BLOCK = 512  # columns of a program
TILE = 2  # rows at a time: 8 numbers per thread of 4 warps
STEPS = ROWS_OF_PROGRAM // TILE  # backward


@triton.jit
def gated_residual_forward(
    a,
    gate,
    update,
    out,
    rows,
    a_stride,
    gate_stride,
    update_stride,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = (row < rows) & (column < W)
    base = tl.load(a + row * a_stride + column, mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(gate + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(update + row * update_stride + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * W + column, (base + factor * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def gated_residual_backward(
    grad,
    gate,
    update,
    for_gate,  # outputs, or None
    for_update,
    partials,  # [programs, partial_stride]: sums of for_update, or None
    rows,
    grad_stride,
    gate_stride,
    update_stride,
    for_gate_stride,
    partial_stride,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    STEPS: tl.constexpr,
):
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    total = tl.zeros((TILE, BLOCK), tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0) * (TILE * STEPS) + step * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
        mask = (row < rows) & (column < W)
        g = tl.load(grad + row * grad_stride + column, mask=mask, other=0.0).to(tl.float32)
        if for_gate is not None:
            up = tl.load(update + row * update_stride + column, mask=mask, other=0.0).to(tl.float32)
            target = for_gate + row * for_gate_stride + column
            tl.store(target, (g * up).to(for_gate.dtype.element_ty), mask=mask)
        if for_update is not None:
            g *= tl.load(gate + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
            tl.store(for_update + row * W + column, g.to(for_update.dtype.element_ty), mask=mask)
            total += g
    if partials is not None:
        place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        start = partials + tl.program_id(0).to(tl.int64) * partial_stride
        tl.store(start + place, tl.sum(total, axis=0), mask=place < W)


@triton.jit
def silu_forward(x, out, numel, SIZE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    value = tl.load(x + place, mask=place < numel, other=0.0).to(tl.float32)
    tl.store(out + place, (value / (1.0 + tl.exp(-value))).to(out.dtype.element_ty), mask=place < numel)


@triton.jit
def silu_backward(
    grad,
    x,
    for_x,
    forward_out,  # SiLU(x) once more, or None
    partials,  # as above, sums of for_x
    rows,
    partial_stride,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    STEPS: tl.constexpr,
):
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    total = tl.zeros((TILE, BLOCK), tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0) * (TILE * STEPS) + step * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
        mask = (row < rows) & (column < W)
        value = tl.load(x + row * W + column, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + row * W + column, mask=mask, other=0.0).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp(-value))
        if forward_out is not None:
            again = (value * sigmoid).to(forward_out.dtype.element_ty)
            tl.store(forward_out + row * W + column, again, mask=mask)
        g *= sigmoid * (1.0 + value * (1.0 - sigmoid))
        tl.store(for_x + row * W + column, g.to(for_x.dtype.element_ty), mask=mask)
        total += g
    if partials is not None:
        place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        start = partials + tl.program_id(0).to(tl.int64) * partial_stride
        tl.store(start + place, tl.sum(total, axis=0), mask=place < W)


def _grid(x: Tensor, steps: int) -> tuple[int, int]:
    return triton.cdiv(len(x), TILE * steps), triton.cdiv(x.shape[1], BLOCK)


def launch_gate(a: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    a, gate, update = map(rows_dense, (a, gate, update))
    out = a.new_empty(tuple(a.shape))
    gated_residual_forward[_grid(a, 1)](
        *(a, gate, update, out, len(a), a.stride(0), gate.stride(0), update.stride(0)),
        W=a.shape[1],
        BLOCK=BLOCK,
        TILE=TILE,
        **LAUNCH,
    )
    return out


def launch_gate_backward(
    grad: Tensor,
    gate: Tensor,
    update: Tensor,
    for_gate: Tensor | None,
    for_update: Tensor | None,
    partials: Tensor | None = None,
) -> None:
    grad, gate, update = map(rows_dense, (grad, gate, update))
    strides = (stride_of(x) for x in (for_gate, partials))
    gated_residual_backward[_grid(grad, STEPS)](
        *(grad, gate, update, for_gate, for_update, partials, len(grad)),
        *(grad.stride(0), gate.stride(0), update.stride(0), *strides),
        W=grad.shape[1],
        BLOCK=BLOCK,
        TILE=TILE,
        STEPS=STEPS,
        **LAUNCH,
    )


def launch_silu(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    silu_forward[(triton.cdiv(x.numel(), 1024),)](x, out, x.numel(), SIZE=1024, **LAUNCH)
    return out


def launch_silu_backward(
    grad: Tensor, x: Tensor, for_x: Tensor, forward_out: Tensor | None, partials: Tensor | None
) -> None:
    silu_backward[_grid(x, STEPS)](
        *(grad, x, for_x, forward_out, partials, len(x), stride_of(partials)),
        W=x.shape[1],
        BLOCK=BLOCK,
        TILE=TILE,
        STEPS=STEPS,
        **LAUNCH,
    )
