"""Matrix products over the rows that are not ignored, when only the device knows how many they are: labels on a GPU.

The grid is that of all rows. A program whose tile begins beyond the rows that count returns at once, so ignored rows
cost nothing. Sums are fp32, and one program computes a whole tile of the result, so no atomic additions are needed.
Where the host knows the number of rows, a library's product is the better choice (passes.py).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..common.optional_triton import LAUNCH, tl, triton
from .row_kernels import launch_cross_entropy_rows
from .settings import Gradients, Needs, Settings


class Counted(NamedTuple):
    """Rows sorted so that those that count come first, and where in that order a chunk of them begins."""

    order: Tensor
    """[N] int64 on the device: row ids."""
    number: Tensor
    """[] int64 on the device: how many rows count."""
    first: int


def _tile(dtype: torch.dtype) -> dict[str, int]:
    """The largest tile that sm_80 to sm_100 compile without spills. fp32 has no tensor cores here, so its operands take
    registers too, and the tile is smaller.
    """
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
    GATHER: tl.constexpr,  # rows of `a` are taken by `order` and results are stored one after another; else reversed
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = a @ b, where b is [b_depth, columns] and is taken to be zero beyond. depth and out_columns bound the
    contiguous axes. They are those of padded rows, multiples of 16, so that accesses stay 128 bits wide.
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
    """total = g^T @ x[order] over the rows that count; with ADD it is added to what stands in `total`."""
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


def launch_gathered_logits(x: Tensor, weight: Tensor, out: Tensor, rows: Counted) -> None:
    """out [size, width] = the chunk's rows of x @ weight^T, padded with zeros."""
    size, tile = len(out), _tile(out.dtype)
    gathered_matmul_kernel[_grid(size, len(weight), tile)](
        x,
        weight,
        out,
        *rows,
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


def launch_scattered_product(gradient: Tensor, weight: Tensor, out: Tensor, rows: Counted) -> None:
    """The chunk's rows of out = gradient @ weight; the other rows of out stay as they are.

    gradient: [size, width], zero beyond the classes of the weight.
    """
    size, dim, tile = len(gradient), weight.shape[1], _tile(out.dtype)
    gathered_matmul_kernel[_grid(size, dim, tile)](
        gradient,
        weight,
        out,
        *rows,
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


def launch_gathered_outer(gradient: Tensor, x: Tensor, total: Tensor, rows: Counted, add: bool) -> None:
    """total [classes, D] = gradient^T @ the chunk's rows of x; with `add`, += ."""
    (classes, dim), tile = total.shape, _tile(gradient.dtype)
    gathered_outer_kernel[_grid(classes, dim, tile)](
        gradient,
        x,
        total,
        *rows,
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
    """`order` and `number` of `Counted` for a boolean mask [N] on the device, without the host waiting for either."""
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
    needs: Needs,
    weight_dtype: torch.dtype,
    settings: Settings,
    chunk: int,
) -> tuple[Tensor, Gradients]:
    """As `passes.losses_and_gradients`, in chunks of `chunk` rows; valid, labels, scale and losses are [N]."""
    (rows, dim), classes = hidden_states.shape, len(weight)
    new, width = hidden_states.new_empty, -(-classes // 64) * 64
    x = hidden_states if hidden_states.stride(1) == 1 else hidden_states.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    order, count = valid_first(valid)
    labels, scale = labels[order], scale[order]
    for_hidden = new(rows if needs.hidden_states else 0, dim).zero_()
    for_weight = new(classes if needs.weight else 0, dim, dtype=torch.float32 if chunk < rows else weight_dtype)
    for_bias = new(classes if needs.bias else 0, dtype=torch.float32).zero_()
    losses = new(rows, dtype=torch.float32)
    padded = None
    if bias is not None:
        padded = bias.new_zeros(width, dtype=torch.float32)
        padded[:classes] = bias
    buffer = new(chunk, width)
    for first in range(0, rows, chunk):
        here = slice(first, min(first + chunk, rows))
        logits = buffer[: here.stop - first]
        counted = Counted(order, count, first)
        if needs.bias:
            logits.zero_()  # or rows that do not count would be in the sum
        launch_gathered_logits(x, weight, logits, counted)
        losses[here] = launch_cross_entropy_rows(
            logits,
            classes,
            padded,
            labels[here],
            scale[here] if any(needs) else None,
            settings,
            count,
            first,
        )
        if needs.bias:
            for_bias += logits[:, :classes].sum(0, dtype=torch.float32)
        if needs.weight:
            launch_gathered_outer(logits, x, for_weight, counted, add=first > 0)
        if needs.hidden_states:
            launch_scattered_product(logits, weight, for_hidden, counted)
    del buffer, logits  # before the weight gradient is cast
    losses = torch.empty_like(losses).scatter_(0, order, losses)
    return torch.where(valid, losses, 0), Gradients(for_hidden, for_weight.to(weight_dtype), for_bias)
