"""Triton kernels of `qk_norm_rope` and the functions that launch them; contract.py says what they compute."""

import torch
from torch import Tensor

from ..common.last_program import counters, groups_of, sum_rows_over_programs
from ..common.optional_triton import LAUNCH, tl, triton
from ..common.strides import rows_dense

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


# The backward pass keeps gradients, inputs and the sums for the weights at once, so a thread holds 4 numbers of either
# half instead of 8. Measured on an H200 at BAGEL's shape: 0.26 ms. With both halves side by side in one tile, every sum
# over a head went through shared memory and its barriers: 1.47 ms.


@triton.jit
def _backward_heads(
    grad,
    x,
    dx,
    weight,
    partial,
    token,
    mask,
    column,
    live,
    cos,
    sin,
    grad_token_stride,
    grad_head_stride,
    token_stride,
    head_stride,
    heads,
    eps,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    dtype = dx.dtype.element_ty
    # Loaded as wide as the tile: a load of [1, COLUMNS] would lie in other threads.
    everywhere = live & (token >= 0)
    w_u = tl.load(weight + token * 0 + column, mask=everywhere, other=0.0).to(tl.float32)
    w_v = tl.load(weight + HALF + token * 0 + column, mask=everywhere, other=0.0).to(tl.float32)
    total_u = tl.zeros((ROWS, COLUMNS), tl.float32)
    total_v = tl.zeros((ROWS, COLUMNS), tl.float32)
    above = grad + token * grad_token_stride + column
    source = x + token * token_stride + column
    target = dx + token * heads * (2 * HALF) + column
    for head in range(0, heads):
        out_u = tl.load(above + head * grad_head_stride, mask=mask, other=0.0).to(tl.float32)
        out_v = tl.load(above + head * grad_head_stride + HALF, mask=mask, other=0.0).to(tl.float32)
        u = tl.load(source + head * head_stride, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(source + head * head_stride + HALF, mask=mask, other=0.0).to(tl.float32)
        g_u = out_u * cos + out_v * sin
        g_v = out_v * cos - out_u * sin
        rstd = tl.rsqrt(tl.sum(u * u + v * v, axis=1) / (2 * HALF) + eps)[:, None]
        u *= rstd
        v *= rstd
        if WEIGHTS:
            total_u += g_u * u
            total_v += g_v * v
        g_u *= w_u
        g_v *= w_v
        along = tl.sum(g_u * u + g_v * v, axis=1)[:, None] / (2 * HALF)
        tl.store(target + head * (2 * HALF), ((g_u - u * along) * rstd).to(dtype), mask=mask)
        tl.store(target + head * (2 * HALF) + HALF, ((g_v - v * along) * rstd).to(dtype), mask=mask)
    if WEIGHTS:
        place = tl.arange(0, COLUMNS)
        tl.store(partial + place, tl.sum(total_u, axis=0), mask=place < HALF)
        tl.store(partial + HALF + place, tl.sum(total_v, axis=0), mask=place < HALF)


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
    partials,  # [programs + groups, 2, 2 * HALF] fp32; `arrived` and `members`: see common/last_program.py
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
    ROWS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BOTH: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    partial = partials + tl.program_id(0).to(tl.int64) * (4 * HALF)
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    live = column < HALF
    mask = (token < tokens) & live
    c = tl.load(cos + token * cos_stride + column, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(sin + token * sin_stride + column, mask=mask, other=0.0).to(tl.float32)
    _backward_heads(
        *(grad_q, q, dq, q_weight, partial, token, mask, column, live, c, s),
        *(grad_q_token_stride, grad_q_head_stride, q_token_stride, q_head_stride),
        *(heads, eps, HALF, COLUMNS, ROWS, WEIGHTS),
    )
    _backward_heads(
        *(grad_k, k, dk, k_weight, partial + 2 * HALF, token, mask, column, live, c, s),
        *(grad_k_token_stride, grad_k_head_stride, k_token_stride, k_head_stride),
        *(kv_heads, eps, HALF, COLUMNS, ROWS, WEIGHTS),
    )
    if WEIGHTS:
        done, total = sum_rows_over_programs(partials, arrived, members, 4 * HALF, BOTH, PARTIALS)
        if done:
            place = tl.arange(0, BOTH)
            tl.store(dq_weight + place, total.to(dq_weight.dtype.element_ty), mask=place < 2 * HALF)
            inside = (place >= 2 * HALF) & (place < 4 * HALF)
            tl.store(dk_weight + place - 2 * HALF, total.to(dk_weight.dtype.element_ty), mask=inside)


WARPS = 4
GROUPS = 4
"""Going forward with few tokens: how many programs share the heads of a token."""


def _sizes(q: Tensor, of_a_thread: int) -> dict[str, int]:
    """Launch options for a tile in which a thread holds `of_a_thread` numbers of either half of a head."""
    half = q.shape[-1] // 2
    columns = triton.next_power_of_2(half)
    return {"HALF": half, "COLUMNS": columns, "ROWS": max(1, WARPS * 32 * of_a_thread // columns), "num_warps": WARPS}


def launch_forward(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """q and k, normalised and rotated, contiguous."""
    q, k, cos, sin = (rows_dense(x) for x in (q, k, cos, sin))
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    if len(q):
        sizes = _sizes(q, 8)
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
    """Gradients of q, of k, and of both weights [D]; the latter have no elements unless they are needed."""
    grad_q, grad_k, q, k, cos, sin = (rows_dense(x) for x in (grad_q, grad_k, q, k, cos, sin))
    dq, dk = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    size = q.shape[-1] if need_weights else 0
    if not len(q):
        return dq, dk, q_weight.new_zeros(size), k_weight.new_zeros(size)
    dq_weight, dk_weight = q_weight.new_empty(size), k_weight.new_empty(size)
    sizes = _sizes(q, 4)
    programs = triton.cdiv(len(q), sizes["ROWS"])
    members, groups = groups_of(programs)
    partials = q.new_empty((programs + groups if need_weights else 0, 2, q.shape[-1]), dtype=torch.float32)
    both = triton.next_power_of_2(2 * q.shape[-1])
    qk_norm_rope_backward[(programs,)](
        *(grad_q, grad_k, q, k, dq, dk, dq_weight, dk_weight, q_weight.contiguous(), k_weight.contiguous(), partials),
        *(counters(q.device, 1 + groups), cos, sin, q.shape[0], members, q.shape[1], k.shape[1]),
        *(*grad_q.stride()[:2], *grad_k.stride()[:2], *q.stride()[:2], *k.stride()[:2], cos.stride(0), sin.stride(0)),
        eps,
        **sizes,
        WEIGHTS=need_weights,
        BOTH=both,
        PARTIALS=max(1, WARPS * 32 * 16 // both),
        maxnreg=64,
        **LAUNCH,
    )
    return dq, dk, dq_weight, dk_weight
