"""Per-head RMS normalisation of queries and keys, then rotary embedding: one launch forward, one backward.

Symbols: T tokens, H query heads, Hkv key heads, D numbers per head (even).

    hat = round(x / sqrt(mean(x^2) + eps))      statistics in fp32, rounded to the dtype of x
    y   = round(hat * weight)                   rounded again, as the eager product is
    (u, v) -> (u cos - v sin, v cos + u sin)    halves of y, in fp32, one rounding at the store

Saved for the backward pass: the arguments, nothing else; the reciprocal norm falls out of the sums that the backward
pass needs anyway. Weight gradients are summed per program and then over programs in a fixed order (a second, tiny
launch), so two runs give the same bits.

Why not Liger or torch: Liger has the norm and the rotation apart (each reads and writes q and k once more) and its
rotation takes [B, H, T, D] with one table per batch; the eager chain is 52 kernels and 16 times the bytes per layer.
"""

import torch
from torch import Tensor

from .backend import LAUNCH, implementation, tl, triton
from .rms_norm import normalise, normalise_backward


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of x [T, H, D]: (u, v) -> (u cos - v sin, v cos + u sin)."""
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:].neg(), x[..., :half]), dim=-1)
    return torch.addcmul(x * cos, turned, sin)


def _rotate_backward(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Transpose of `_rotate`."""
    half = grad.shape[-1] // 2
    g = grad * sin
    return torch.addcmul(torch.cat((g[..., half:], g[..., :half].neg()), dim=-1), grad, cos)


def reference(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Plain torch, any device and dtype."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)

    def one(x: Tensor, weight: Tensor) -> Tensor:
        hat, rstd = normalise(x, eps)
        scaled = (hat * weight).to(x.dtype)
        return _rotate(scaled.to(rstd.dtype), cos, sin).to(x.dtype).contiguous()

    return one(q, q_weight), one(k, k_weight)


def _weights_dtype(q_weight: Tensor, k_weight: Tensor) -> torch.dtype:
    """Of both weights' gradients, which come in one tensor."""
    return torch.promote_types(q_weight.dtype, k_weight.dtype)


Gradients = tuple[Tensor, Tensor, Tensor]


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
) -> Gradients:
    """Gradients of q, of k, and of both weights, [2, D] (not needed: [0, D])."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)

    def one(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        rstd = normalise(x, eps)[1]
        g = _rotate_backward(grad.to(rstd.dtype), cos, sin)
        grad_weight = (x.to(rstd.dtype) * rstd).mul_(g).flatten(0, -2).sum(0) if need_weights else None
        return normalise_backward(g.mul_(weight), x, rstd).to(x.dtype).contiguous(), grad_weight

    dq, dq_weight = one(grad_q, q, q_weight)
    dk, dk_weight = one(grad_k, k, k_weight)
    dtype = _weights_dtype(q_weight, k_weight)
    if dq_weight is None or dk_weight is None:
        return dq, dk, q_weight.new_empty((0, q.shape[-1]), dtype=dtype)
    return dq, dk, torch.stack((dq_weight, dk_weight)).to(dtype)


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
    q_weight,
    k_weight,
    partials,
    cos,
    sin,
    tokens,
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


WARPS = 4
BACKWARD_WARPS = 8
GROUPS = 4  # forward, with few tokens: programs that share a token's heads
TOKENS = 16  # backward: tokens of one program, all their heads


def _rows(x: Tensor) -> Tensor:
    """x itself when the numbers of a head lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _sizes(q: Tensor) -> dict[str, int]:
    """A tile of 8 numbers of either half per thread."""
    half = q.shape[-1] // 2
    columns = triton.next_power_of_2(half)
    return {"HALF": half, "COLUMNS": columns, "ROWS": max(1, WARPS * 32 * 8 // columns), "num_warps": WARPS}


def launch_forward(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    q, k, cos, sin = (_rows(x) for x in (q, k, cos, sin))
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    if len(q):
        sizes = _sizes(q)
        blocks = triton.cdiv(len(q), sizes["ROWS"])
        qk_norm_rope_forward[(blocks, 1 if blocks >= 512 else GROUPS)](
            *(q, k, q_out, k_out, q_weight.contiguous(), k_weight.contiguous(), cos, sin),
            *(q.shape[0], q.shape[1], k.shape[1]),
            *(*q.stride()[:2], *k.stride()[:2], cos.stride(0), sin.stride(0), eps),
            **sizes,
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
) -> Gradients:
    grad_q, grad_k, q, k, cos, sin = (_rows(x) for x in (grad_q, grad_k, q, k, cos, sin))
    dq, dk = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    dtype = _weights_dtype(q_weight, k_weight)
    if not len(q):
        return dq, dk, q_weight.new_zeros((2 if need_weights else 0, q.shape[-1]), dtype=dtype)
    sizes = _sizes(q)
    programs = triton.cdiv(len(q), TOKENS)
    partials = torch.empty(programs if need_weights else 0, 2, q.shape[-1], dtype=torch.float32, device=q.device)
    qk_norm_rope_backward[(programs,)](
        *(grad_q, grad_k, q, k, dq, dk, q_weight.contiguous(), k_weight.contiguous(), partials, cos, sin),
        *(q.shape[0], q.shape[1], k.shape[1]),
        *(*grad_q.stride()[:2], *grad_k.stride()[:2], *q.stride()[:2], *k.stride()[:2], cos.stride(0), sin.stride(0)),
        eps,
        HALF=sizes["HALF"],
        COLUMNS=sizes["COLUMNS"],
        HEADS=max(1, BACKWARD_WARPS * 32 * 8 // (2 * sizes["COLUMNS"])),
        TOKENS=TOKENS,
        WEIGHTS=need_weights,
        num_warps=BACKWARD_WARPS,
        **LAUNCH,
    )
    if not need_weights:
        return dq, dk, partials[:, 0].to(dtype, copy=True)
    # The sum of the partials, in their order, whatever program finished first.
    return dq, dk, partials.sum(0).to(dtype)


@torch.library.custom_op("reca_fast::qk_norm_rope", mutates_args=())
def _op(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    run = launch_forward if implementation(q) == "triton" else reference
    return run(q, k, q_weight, k_weight, cos, sin, eps)


@_op.register_fake
def _(q, k, q_weight, k_weight, cos, sin, eps):
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch.library.custom_op("reca_fast::qk_norm_rope_backward", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor]:
    run = launch_backward if implementation(q) == "triton" else reference_backward
    return run(grad_q, grad_k, q, k, q_weight, k_weight, cos, sin, eps, need_weights)


@_backward_op.register_fake
def _(grad_q, grad_k, q, k, q_weight, k_weight, cos, sin, eps, need_weights):
    weights = q_weight.new_empty((2 if need_weights else 0, q.shape[-1]), dtype=_weights_dtype(q_weight, k_weight))
    return q.new_empty(q.shape), k.new_empty(k.shape), weights


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad_q: Tensor, grad_k: Tensor):
    need = ctx.needs_input_grad
    saved = ctx.saved_tensors
    dq, dk, weights = _backward_op(grad_q, grad_k, *saved, ctx.eps, need[2] or need[3])
    dq_weight, dk_weight = (weights[n].to(saved[2 + n].dtype) if need[2 + n] else None for n in (0, 1))
    return dq if need[0] else None, dk if need[1] else None, dq_weight, dk_weight, None, None, None


_op.register_autograd(_differentiate, setup_context=_save)


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Normalise each head of q and k, scale by the weights, rotate.

    Args:
        q: [T, H, D]; k: [T, Hkv, D] in the dtype of q; D even. Views are read in place when a head's numbers lie side
            by side, e.g. slices of one fused projection.
        q_weight, k_weight: [D].
        cos, sin: [T, D], usually fp32, both halves equal (the kernels read the first); they get no gradient.
        eps: added to the mean square. Rounding: statistics in fp32, cast to the dtype of q before the weight.

    Returns:
        (q, k), same shapes and dtypes, contiguous.

    Raises:
        ValueError: a shape, dtype or device that does not fit; the message starts with the argument's name.
    """
    if q.dim() != 3 or q.shape[-1] % 2 or not q.shape[-1]:
        raise ValueError(f"q: expected [T, H, D] with even D, got {list(q.shape)}")
    tokens, dim = q.shape[0], q.shape[-1]
    if k.dim() != 3 or k.shape[0] != tokens or k.shape[-1] != dim:
        raise ValueError(f"k: expected [{tokens}, Hkv, {dim}], got {list(k.shape)}")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight.shape != (dim,):
            raise ValueError(f"{name}: expected [{dim}], got {list(weight.shape)}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (tokens, dim):
            raise ValueError(f"{name}: expected [{tokens}, {dim}], got {list(table.shape)}")
    if not q.dtype.is_floating_point or k.dtype != q.dtype:
        raise ValueError(
            f"{'k' if q.dtype.is_floating_point else 'q'}: expected the floating dtype of q, got {k.dtype}"
        )
    others = {"k": k, "q_weight": q_weight, "k_weight": k_weight, "cos": cos, "sin": sin}
    for name, x in others.items():
        if not x.dtype.is_floating_point:
            raise ValueError(f"{name}: expected a floating dtype, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name}: expected the device of q, {q.device}, got {x.device}")
    return _op(q, k, q_weight, k_weight, cos, sin, float(eps))
