"""Matrix products over rows whose number only the device knows, for `fused_linear_cross_entropy` with labels on a GPU.

order: [N] int64, the rows that count first; count: 0-d int64, how many there are; both on the device. A chunk is rows
first .. first + size of that order. Programs whose tile lies beyond the count return at once, so that rows which do not
count cost nothing although the grid is that of all rows. fp32 accumulation, no atomics: one program owns one tile of
the result. Where the host knows the number of rows a library product is the better choice.
"""

import torch
from torch import Tensor

from ..common.optional_triton import LAUNCH, tl, triton
from .row_kernels import launch_cross_entropy_rows


def _tile(dtype: torch.dtype) -> dict[str, int]:
    """The largest that compile without spills on sm_80 to sm_100; without tensor cores operands take registers too."""
    if dtype.itemsize == 2:
        return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
    return {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2}


def _grid(rows: int, columns: int, tile: dict[str, int]) -> tuple[int, int]:
    return triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(columns, tile["BLOCK_N"])


@triton.jit
def gathered_matmul_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    order_ptr,
    count_ptr,
    first,
    size,
    columns,
    out_columns,
    depth,
    b_depth,
    a_stride,
    b_stride_n,
    b_stride_k,
    out_stride,
    GATHER: tl.constexpr,  # rows of `a` by order, results one after another; else the other way round
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = a @ b, b read as [b_depth, columns] and as zeros beyond. Bounds of the contiguous axes, depth and
    out_columns, are those of padded rows: multiples of 16, so that accesses stay 128 bits wide.
    """
    live = tl.minimum(tl.load(count_ptr) - first, size)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(0) * BLOCK_M >= live:
        return
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    here = row < live
    place = tl.load(order_ptr + first + row, mask=here, other=0)
    compact = row.to(tl.int64)
    source = place if GATHER else compact
    target = compact if GATHER else place
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    a_ptrs = a_ptr + source[:, None] * a_stride + k[None, :]
    b_ptrs = b_ptr + column[None, :].to(tl.int64) * b_stride_n + k[:, None].to(tl.int64) * b_stride_k
    for begin in range(0, depth, BLOCK_K):
        inside = begin + k < depth
        a = tl.load(a_ptrs, mask=here[:, None] & inside[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=(begin + k < b_depth)[:, None] & (column[None, :] < columns), other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K * b_stride_k
    out_ptrs = out_ptr + target[:, None] * out_stride + column[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=here[:, None] & (column[None, :] < out_columns))


@triton.jit
def gathered_outer_kernel(
    g_ptr,
    x_ptr,
    total_ptr,
    order_ptr,
    count_ptr,
    first,
    size,
    classes,
    width,
    dim,
    g_stride,
    x_stride,
    total_stride,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """total (+)= g^T @ x[order], the rows that count only."""
    live = tl.minimum(tl.load(count_ptr) - first, size)
    if ADD:  # noqa: SIM102
        if live <= 0:
            return
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for begin in range(0, live, BLOCK_K):
        row = begin + k
        here = row < live
        place = tl.load(order_ptr + first + row, mask=here, other=0)
        g = tl.load(
            g_ptr + row[None, :].to(tl.int64) * g_stride + m[:, None],
            mask=here[None, :] & (m[:, None] < width),
            other=0.0,
        )
        x = tl.load(x_ptr + place[:, None] * x_stride + n[None, :], mask=here[:, None] & (n[None, :] < dim), other=0.0)
        total = tl.dot(g, x, total, input_precision="ieee")
    out_ptrs = total_ptr + m[:, None].to(tl.int64) * total_stride + n[None, :]
    mask = (m[:, None] < classes) & (n[None, :] < dim)
    if ADD:
        total += tl.load(out_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptrs, total.to(total_ptr.dtype.element_ty), mask=mask)


def launch_gathered_logits(x: Tensor, weight: Tensor, out: Tensor, order: Tensor, count: Tensor, first: int) -> None:
    """out [size, width] = x[order[first:]] @ weight^T, padded with zeros."""
    size, tile = len(out), _tile(out.dtype)
    gathered_matmul_kernel[_grid(size, len(weight), tile)](
        x,
        weight,
        out,
        order,
        count,
        first,
        size,
        len(weight),
        out.shape[1],
        x.shape[1],
        x.shape[1],
        x.stride(0),
        weight.stride(0),
        weight.stride(1),
        out.stride(0),
        GATHER=True,
        **tile,
        **LAUNCH,
    )


def launch_scattered_product(
    gradient: Tensor, weight: Tensor, out: Tensor, order: Tensor, count: Tensor, first: int
) -> None:
    """out[order[first:]] = gradient [size, width, zero beyond the classes] @ weight; other rows of out stay."""
    size, dim, tile = len(gradient), weight.shape[1], _tile(out.dtype)
    gathered_matmul_kernel[_grid(size, dim, tile)](
        gradient,
        weight,
        out,
        order,
        count,
        first,
        size,
        dim,
        dim,
        gradient.shape[1],
        len(weight),
        gradient.stride(0),
        weight.stride(1),
        weight.stride(0),
        out.stride(0),
        GATHER=False,
        **tile,
        **LAUNCH,
    )


def launch_gathered_outer(
    gradient: Tensor, x: Tensor, total: Tensor, order: Tensor, count: Tensor, first: int, add: bool
) -> None:
    """total [classes, D] = or += gradient^T @ x[order[first:]]."""
    (classes, dim), tile = total.shape, _tile(gradient.dtype)
    gathered_outer_kernel[_grid(classes, dim, tile)](
        gradient,
        x,
        total,
        order,
        count,
        first,
        len(gradient),
        classes,
        gradient.shape[1],
        dim,
        gradient.stride(0),
        x.stride(0),
        total.stride(0),
        ADD=add,
        **tile,
        **LAUNCH,
    )


def valid_first(valid: Tensor) -> tuple[Tensor, Tensor]:
    """order [N] and count (0-d) of a boolean mask on the device, without the host waiting for either."""
    before = valid.cumsum(0)
    after = before[-1:] + (~valid).cumsum(0)
    place = torch.where(valid, before, after) - 1
    ids = torch.arange(len(valid), device=valid.device)
    return torch.empty_like(ids).scatter_(0, place, ids), before[-1]


def ragged_losses_and_gradients(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    valid: Tensor,
    scale: Tensor,
    needs: tuple[bool, bool, bool],
    weight_dtype: torch.dtype,
    start: int,
    smoothing: float,
    z_loss: float,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `losses_and_gradients`, for all rows: valid, labels, scale and losses are [N]."""
    (rows, dim), classes = hidden_states.shape, len(weight)
    new, width = hidden_states.new_empty, -(-classes // 64) * 64
    x = hidden_states if hidden_states.stride(1) == 1 else hidden_states.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    order, count = valid_first(valid)
    labels, scale = labels[order], scale[order]
    for_hidden = new(rows if needs[0] else 0, dim).zero_()
    for_weight = new(classes if needs[1] else 0, dim, dtype=torch.float32 if chunk < rows else weight_dtype)
    for_bias = new(classes if needs[2] else 0, dtype=torch.float32).zero_()
    losses = new(rows, dtype=torch.float32)
    padded = None
    if bias is not None:
        padded = bias.new_zeros(width, dtype=torch.float32)
        padded[:classes] = bias
    buffer = new(chunk, width)
    for first in range(0, rows, chunk):
        here = slice(first, min(first + chunk, rows))
        logits = buffer[: here.stop - first]
        if needs[2]:
            logits.zero_()  # rows beyond the count add nothing to the sum
        launch_gathered_logits(x, weight, logits, order, count, first)
        losses[here] = launch_cross_entropy_rows(
            logits,
            classes,
            padded,
            labels[here],
            scale[here] if any(needs) else None,
            start,
            smoothing,
            z_loss,
            count,
            first,
        )
        if needs[2]:
            for_bias += logits[:, :classes].sum(0, dtype=torch.float32)
        if needs[1]:
            launch_gathered_outer(logits, x, for_weight, order, count, first, first > 0)
        if needs[0]:
            launch_scattered_product(logits, weight, for_hidden, order, count, first)
    del buffer, logits  # before the weight gradient is cast
    losses = torch.empty_like(losses).scatter_(0, order, losses)
    return torch.where(valid, losses, 0), for_hidden, for_weight.to(weight_dtype), for_bias
