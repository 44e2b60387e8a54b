"""Attention on a CPU: torch's fused kernel, once for all segments of one size that follow each other.

It is one operation of torch, into which torch.compile does not look, so that segments of other lengths are never
compiled again.
"""

import torch
from torch import Tensor

from .segments import alike, fold, fold_mask, unfold, visible_segments


@torch.library.custom_op("reca_fast::varlen_attention_cpu", mutates_args=(), device_types="cpu")
def cpu_attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The output [Tq, H, D] and what the backward pass needs: the log-sum-exp of every query in every head, [Tq * H].

    The latter is in the order of `fold`, one segment after another. Queries that see no key stay zero.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    out = q.new_zeros(q.shape)
    lse = q.new_zeros(q.shape[0] * heads, dtype=torch.promote_types(q.dtype, torch.float32))
    for number, q0, q1, k0, k1 in alike(visible_segments(q, k, cu_q, cu_k, causal)):
        queries, seen = (q1 - q0) // number, (k1 - k0) // number
        mask = fold_mask(queries, seen, heads // kv_heads, causal, q)
        keys, values = (x[k0:k1].unflatten(0, (number, seen)).transpose(1, 2) for x in (k, v))
        part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            fold(q[q0:q1], kv_heads, number), keys, values, attn_mask=mask
        )
        out[q0:q1] = unfold(part, queries)
        lse[q0 * heads : q1 * heads] = part_lse.flatten()
    return out, lse


@cpu_attention.register_fake
def _(q, k, v, cu_q, cu_k, causal):
    return q.new_empty(q.shape), q.new_empty(q.shape[0] * q.shape[1], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("reca_fast::varlen_attention_cpu_backward", mutates_args=(), device_types="cpu")
def _cpu_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads = q.shape[1], k.shape[1]
    # Zero where no key is seen, or no query sees the key.
    grad_q, grad_k, grad_v = (x.new_zeros(x.shape) for x in (q, k, v))
    for number, q0, q1, k0, k1 in alike(visible_segments(q, k, cu_q, cu_k, causal)):
        queries, seen = (q1 - q0) // number, (k1 - k0) // number
        mask = fold_mask(queries, seen, heads // kv_heads, causal, q)
        keys, values = (x[k0:k1].unflatten(0, (number, seen)).transpose(1, 2) for x in (k, v))
        part_lse = lse[q0 * heads : q1 * heads].view(number, kv_heads, -1)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            fold(grad[q0:q1], kv_heads, number),
            fold(q[q0:q1], kv_heads, number),
            keys,
            values,
            fold(out[q0:q1], kv_heads, number),
            part_lse,
            0.0,
            False,
            attn_mask=mask,
        )
        grad_q[q0:q1] = unfold(dq, queries)
        grad_k[k0:k1], grad_v[k0:k1] = (each.transpose(1, 2).flatten(0, 1) for each in (dk, dv))
    return grad_q, grad_k, grad_v


@_cpu_attention_backward.register_fake
def _(grad, q, k, v, out, lse, cu_q, cu_k, causal):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, cu_q, cu_k, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k)


def _backward(ctx, grad_out, grad_lse):
    grads = _cpu_attention_backward(grad_out.contiguous(), *ctx.saved_tensors, ctx.causal)
    return (*grads, None, None, None)


cpu_attention.register_autograd(_backward, setup_context=_save)
