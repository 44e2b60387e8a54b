"""Triton kernels of qk_norm_rope.py and their launchers; what they compute is told there."""

import torch
from torch import Tensor

from .backend import LAUNCH, tl, triton
from .last_program import counters, groups_of, sum_rows_over_programs
from .strides import rows_dense

# A program takes a few tokens and all (or a quarter of) their heads, one head at a time: the tables stay in registers.
# Both halves of a head sit in one thread, so the rotation needs no exchange between threads.


@triton.jit
def _forward_heads(
    x,
    out,
    weight,
    token_stride,
    head_stride,
    heads,
    token,
    mask,
    column,
    live,
    cos,
    sin,
    eps,
    HALF: tl.constexpr,
    group,
    groups,
):
    dtype = out.dtype.element_ty
    source = x + token * token_stride + column
    target = out + token * heads * (2 * HALF) + column
    for head in range(group, heads, groups):
        u = tl.load(source + head * head_stride, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(source + head * head_stride + HALF, mask=mask, other=0.0).to(tl.float32)
        w_u = tl.load(weight + column, mask=live, other=0.0).to(tl.float32)
        w_v = tl.load(weight + HALF + column, mask=live, other=0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(u * u + v * v, axis=1) / (2 * HALF) + eps)[:, None]
        u = ((u * rstd).to(dtype).to(tl.float32) * w_u).to(dtype).to(tl.float32)
        v = ((v * rstd).to(dtype).to(tl.float32) * w_v).to(dtype).to(tl.float32)
        tl.store(target + head * (2 * HALF), (u * cos - v * sin).to(dtype), mask=mask)
        tl.store(target + head * (2 * HALF) + HALF, (v * cos + u * sin).to(dtype), mask=mask)


@triton.jit
def qk_norm_rope_forward(
    q,
    k,
    q_out,
    k_out,
    q_weight,
    k_weight,
    cos,
    sin,
    tokens,
    heads,
    kv_heads,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    cos_stride,
    sin_stride,
    eps,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    live = column < HALF
    mask = (token < tokens) & live
    group, groups = tl.program_id(1), tl.num_programs(1)
    c = tl.load(cos + token * cos_stride + column, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(sin + token * sin_stride + column, mask=mask, other=0.0).to(tl.float32)
    _forward_heads(
        *(q, q_out, q_weight, q_token_stride, q_head_stride, heads),
        *(token, mask, column, live, c, s, eps, HALF, group, groups),
    )
    _forward_heads(
        *(k, k_out, k_weight, k_token_stride, k_head_stride, kv_heads),
        *(token, mask, column, live, c, s, eps, HALF, group, groups),
    )


# Backward, gradients, inputs and the sums for the weights would need twice the registers that half occupancy allows.
# There a thread holds 8 numbers of one half, and only the gradient is exchanged with the thread of the other half.


@triton.jit
def _backward_heads(
    grad,
    x,
    dx,
    weight,
    partial,
    cos,
    sin,
    grad_token_stride,
    grad_head_stride,
    token_stride,
    head_stride,
    cos_stride,
    sin_stride,
    tokens,
    heads,
    eps,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    dtype = dx.dtype.element_ty
    side = tl.arange(0, 2)[None, :, None]
    column = tl.arange(0, COLUMNS)[None, None, :]
    live = column < HALF
    place = side * HALF + column
    row = tl.arange(0, HEADS)[:, None, None]
    # One row reads the weights and the sum hands them to all: loaded as [1, 2, COLUMNS], they would spread over other
    # threads than the heads do, and every tile would change places twice (100 registers instead of 50).
    w = tl.load(weight + (row * 0 + place), mask=(row == 0) & live, other=0.0).to(tl.float32)
    w = tl.sum(w, axis=0)[None, :, :]
    total = tl.zeros((HEADS, 2, COLUMNS), tl.float32)
    begin = tl.program_id(0).to(tl.int64) * TOKENS
    for token in range(begin, tl.minimum(begin + TOKENS, tokens)):
        for first in range(0, heads, HEADS):
            head = first + row
            mask = (head < heads) & live
            above = grad + token * grad_token_stride
            g = tl.load(above + (head * grad_head_stride + place), mask=mask, other=0.0).to(tl.float32)
            bits = g.to(tl.int32, bitcast=True)
            other = (tl.sum(bits, axis=1)[:, None, :] - bits).to(tl.float32, bitcast=True)  # of the other half, exact
            c = tl.load(cos + token * cos_stride + column, mask=live, other=0.0).to(tl.float32)
            s = tl.load(sin + token * sin_stride + column, mask=live, other=0.0).to(tl.float32)
            g = g * c + other * tl.where(side == 0, s, -s)
            source = x + token * token_stride
            hat = tl.load(source + (head * head_stride + place), mask=mask, other=0.0).to(tl.float32)
            squares = tl.sum(tl.sum(hat * hat, axis=2), axis=1)[:, None, None]
            rstd = tl.rsqrt(squares / (2 * HALF) + eps)
            hat *= rstd
            if WEIGHTS:
                total += g * hat
            g *= w
            along = tl.sum(tl.sum(g * hat, axis=2), axis=1)[:, None, None] / (2 * HALF)
            target = dx + token * heads * (2 * HALF)
            tl.store(target + (head * (2 * HALF) + place), ((g - hat * along) * rstd).to(dtype), mask=mask)
    if WEIGHTS:
        place = tl.arange(0, 2)[:, None] * HALF + tl.arange(0, COLUMNS)[None, :]
        tl.store(partial + place, tl.sum(total, axis=0), mask=tl.arange(0, COLUMNS)[None, :] < HALF)


@triton.jit
def qk_norm_rope_backward(
    grad_q,
    grad_k,
    q,
    k,
    dq,
    dk,
    dq_weight,
    dk_weight,
    q_weight,
    k_weight,
    partials,  # [programs + groups, 2, 2 * HALF] fp32, with `arrived` and `members` as in last_program.py
    arrived,
    cos,
    sin,
    tokens,
    members,
    heads,
    kv_heads,
    grad_q_token_stride,
    grad_q_head_stride,
    grad_k_token_stride,
    grad_k_head_stride,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    cos_stride,
    sin_stride,
    eps,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BOTH: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    partial = partials + tl.program_id(0).to(tl.int64) * (4 * HALF)
    _backward_heads(
        *(grad_q, q, dq, q_weight, partial, cos, sin),
        *(grad_q_token_stride, grad_q_head_stride, q_token_stride, q_head_stride, cos_stride, sin_stride),
        *(tokens, heads, eps, HALF, COLUMNS, HEADS, TOKENS, WEIGHTS),
    )
    _backward_heads(
        *(grad_k, k, dk, k_weight, partial + 2 * HALF, cos, sin),
        *(grad_k_token_stride, grad_k_head_stride, k_token_stride, k_head_stride, cos_stride, sin_stride),
        *(tokens, kv_heads, eps, HALF, COLUMNS, HEADS, TOKENS, WEIGHTS),
    )
    if WEIGHTS:
        done, total = sum_rows_over_programs(partials, arrived, members, 4 * HALF, BOTH, PARTIALS)
        if done:
            place = tl.arange(0, BOTH)
            tl.store(dq_weight + place, total.to(dq_weight.dtype.element_ty), mask=place < 2 * HALF)
            inside = (place >= 2 * HALF) & (place < 4 * HALF)
            tl.store(dk_weight + place - 2 * HALF, total.to(dk_weight.dtype.element_ty), mask=inside)


WARPS = 4
BACKWARD_WARPS = 8
GROUPS = 4  # forward, with few tokens: programs that share a token's heads
TOKENS = 16  # backward: tokens of one program, all their heads


def _sizes(q: Tensor) -> dict[str, int]:
    """A tile of 8 numbers of either half per thread."""
    half = q.shape[-1] // 2
    columns = triton.next_power_of_2(half)
    return {"HALF": half, "COLUMNS": columns, "ROWS": max(1, WARPS * 32 * 8 // columns), "num_warps": WARPS}


def launch_forward(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    q, k, cos, sin = (rows_dense(x) for x in (q, k, cos, sin))
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    if len(q):
        sizes = _sizes(q)
        blocks = triton.cdiv(len(q), sizes["ROWS"])
        qk_norm_rope_forward[(blocks, 1 if blocks >= 512 else GROUPS)](
            *(q, k, q_out, k_out, q_weight.contiguous(), k_weight.contiguous(), cos, sin),
            *(q.shape[0], q.shape[1], k.shape[1]),
            *(*q.stride()[:2], *k.stride()[:2], cos.stride(0), sin.stride(0), eps),
            **sizes,
            maxnreg=None if q.dtype == torch.bfloat16 else 64,  # left alone, ptxas takes 72 in fp32 and spills in fp16
            **LAUNCH,
        )
    return q_out, k_out


def launch_backward(
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
    grad_q, grad_k, q, k, cos, sin = (rows_dense(x) for x in (grad_q, grad_k, q, k, cos, sin))
    dq, dk = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    size = q.shape[-1] if need_weights else 0
    if not len(q):
        return dq, dk, q_weight.new_zeros(size), k_weight.new_zeros(size)
    dq_weight, dk_weight = q_weight.new_empty(size), k_weight.new_empty(size)
    sizes = _sizes(q)
    programs = triton.cdiv(len(q), TOKENS)
    members, groups = groups_of(programs)
    partials = q.new_empty((programs + groups if need_weights else 0, 2, q.shape[-1]), dtype=torch.float32)
    both = triton.next_power_of_2(2 * q.shape[-1])
    qk_norm_rope_backward[(programs,)](
        *(grad_q, grad_k, q, k, dq, dk, dq_weight, dk_weight, q_weight.contiguous(), k_weight.contiguous(), partials),
        *(counters(q.device, 1 + groups), cos, sin, q.shape[0], members, q.shape[1], k.shape[1]),
        *(*grad_q.stride()[:2], *grad_k.stride()[:2], *q.stride()[:2], *k.stride()[:2], cos.stride(0), sin.stride(0)),
        eps,
        HALF=sizes["HALF"],
        COLUMNS=sizes["COLUMNS"],
        HEADS=max(1, BACKWARD_WARPS * 32 * 8 // (2 * sizes["COLUMNS"])),
        TOKENS=TOKENS,
        WEIGHTS=need_weights,
        BOTH=both,
        PARTIALS=max(1, BACKWARD_WARPS * 32 * 16 // both),
        num_warps=BACKWARD_WARPS,
        **LAUNCH,
    )
    return dq, dk, dq_weight, dk_weight
