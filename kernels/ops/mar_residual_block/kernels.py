"""Triton kernels for the gated residual and for SiLU, each with its backward pass, and the functions that launch them.

The block's third kernel is that of `adaln_modulate`. A program takes 512 columns of a few rows, 8 neighbouring numbers
per thread. Backward programs take as many rows as those of `adaln_modulate` do, so that one buffer holds the partial
sums of all three kernels.
"""

import torch
from torch import Tensor

from ..adaln_modulate.kernels import ROWS_OF_PROGRAM
from ..common.optional_triton import LAUNCH, tl, triton
from ..common.strides import rows_dense, stride_of

BLOCK = 512
"""Columns of a program."""
TILE = 2
"""Rows that a program takes at a time: with 4 warps, 8 numbers per thread."""
STEPS = ROWS_OF_PROGRAM // TILE
"""How many times a backward program does so."""


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
    for_gate,  # output, or None
    for_update,  # output, or None
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
    forward_out,  # output: SiLU(x) once more, or None
    partials,  # [programs, partial_stride]: sums of for_x, or None
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
    """a + gate * update for [N, W] each."""
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
    """Gradients of gate and update, written into tensors of the caller, either of which may be absent.

    `partials`, fp32 [programs_of(N), W] with any stride between programs, gets each program's sum of `for_update`.
    """
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
    """SiLU(x) for a contiguous x."""
    out = torch.empty_like(x)
    silu_forward[(triton.cdiv(x.numel(), 1024),)](x, out, x.numel(), SIZE=1024, **LAUNCH)
    return out


def launch_silu_backward(
    grad: Tensor, x: Tensor, for_x: Tensor, forward_out: Tensor | None, partials: Tensor | None
) -> None:
    """The gradient of x, written into `for_x`, and SiLU(x) into `forward_out`; all [N, W] and contiguous.

    `partials`, fp32 [programs_of(N), W] with any stride between programs, gets each program's sum of `for_x`.
    """
    silu_backward[_grid(x, STEPS)](
        *(grad, x, for_x, forward_out, partials, len(x), stride_of(partials)),
        W=x.shape[1],
        BLOCK=BLOCK,
        TILE=TILE,
        STEPS=STEPS,
        **LAUNCH,
    )
