"""The libraries behind `varlen_attention`. Each says whether it can run and adapts its own calling convention.

torch       torch.nn.attention.varlen, FlashAttention inside torch: the default on Ampere and newer GPUs
flash_attn  the flash-attn package, for those who built a newer kernel than torch ships
xformers    memory-efficient attention with block-diagonal bias objects; GPUs older than Ampere; on a CPU the bias
            objects are materialised (that is how their meaning is tested without a GPU)
sdpa        torch's scaled_dot_product_attention, segment by segment; the default on CPUs
eager       matrix products and a softmax under one dense mask: the definition that the others are compared with
"""

import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Backend(NamedTuple):
    missing: Callable[[torch.device, torch.dtype], str | None]
    run: Callable[..., Tensor]


def _needs_flash_gpu(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return "needs an NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 (Ampere) or newer"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs fp16 or bf16, not {dtype}"
    return None


def _missing_torch(device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen; install torch 2.10 or newer"
    return _needs_flash_gpu(device, dtype)


def _missing_flash_attn(device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed; pip install 'reca-fast[gpu]'"
    return _needs_flash_gpu(device, dtype)


def _missing_xformers(device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed; pip install 'reca-fast[gpu]'"
    if device.type == "cuda":
        from xformers import _cpp_lib

        if _cpp_lib._cpp_library_load_exception is not None:
            return f"xformers was built for another torch than {torch.__version__}; install the matching release"
        if dtype is torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
            return "needs compute capability 8.0 (Ampere) or newer for bf16"
    return None


def _always(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _run_torch(q, k, v, cu_q, cu_k, max_q, max_k, causal):
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, window_size=window, enable_gqa=q.shape[1] != k.shape[1])


def _run_flash_attn(q, k, v, cu_q, cu_k, max_q, max_k, causal):
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal)


def xformers_bias(q_lengths: list[int], k_lengths: list[int], causal: bool):
    """The bias object of the contract."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask, BlockDiagonalMask

    kind = BlockDiagonalCausalFromBottomRightMask if causal else BlockDiagonalMask
    return kind.from_seqlens(q_lengths, k_lengths)


def _run_xformers(q, k, v, cu_q, cu_k, max_q, max_k, causal):
    bias = xformers_bias(cu_q.diff().tolist(), cu_k.diff().tolist(), causal)
    if q.device.type != "cuda":
        return _dense(q, k, v, bias.materialize((q.shape[0], k.shape[0]), dtype=q.dtype))
    from xformers.ops import memory_efficient_attention

    heads, kv_heads = q.shape[1], k.shape[1]
    if heads == kv_heads:
        return memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)[0]
    # Grouped queries are a fifth dimension there: [batch, tokens, kv heads, queries per kv head, head dim].
    shape = (-1, -1, heads // kv_heads, -1)
    k, v = k.unsqueeze(2).expand(shape), v.unsqueeze(2).expand(shape)
    out = memory_efficient_attention(q.unflatten(1, (kv_heads, -1))[None], k[None], v[None], attn_bias=bias)
    return out[0].flatten(1, 2)


def _dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention under an additive mask [Tq, Tk], softmax in fp32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1).transpose(0, 1).to(wide) for x in (k, v))
    scores = q.transpose(0, 1).to(wide) @ k.transpose(1, 2) / math.sqrt(q.shape[2]) + bias.to(wide)
    return (scores.softmax(-1) @ v).transpose(0, 1).to(q.dtype)


def _run_eager(q, k, v, cu_q, cu_k, max_q, max_k, causal):
    rows, columns = torch.arange(q.shape[0], device=q.device), torch.arange(k.shape[0], device=q.device)
    q_segment = torch.bucketize(rows, cu_q[1:-1], right=True)
    k_segment = torch.bucketize(columns, cu_k[1:-1], right=True)
    allowed = q_segment[:, None] == k_segment[None, :]
    if causal:
        # Counted from the end of the segment, a query must not lie before its key.
        from_end_q, from_end_k = cu_q[1:][q_segment] - rows, cu_k[1:][k_segment] - columns
        allowed &= from_end_k[None, :] >= from_end_q[:, None]
    bias = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill(~allowed, -math.inf)
    return _dense(q, k, v, bias)


def _segments(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor) -> list[tuple[int, int, int, int]]:
    """(first query, end, first key, end) of every segment with queries: the CPU kernel divides by their number.

    Offsets that do not fit the rows raise here; where the lengths stay on the GPU nobody can look at them.
    """
    bounds_q, bounds_k = cu_q.tolist(), cu_k.tolist()
    for name, bounds, rows in (("cu_seqlens_q", bounds_q, len(q)), ("cu_seqlens_k", bounds_k, len(k))):
        if bounds[:1] != [0] or bounds[-1] != rows or bounds != sorted(bounds):
            raise ValueError(f"{name}: expected 0 rising to {rows}, got {bounds}")
    if len(bounds_q) != len(bounds_k):
        raise ValueError(f"cu_seqlens_k: expected {len(bounds_q)} offsets like cu_seqlens_q, got {len(bounds_k)}")
    segments = zip(bounds_q, bounds_q[1:], bounds_k, bounds_k[1:], strict=False)
    return [segment for segment in segments if segment[0] < segment[1]]


def _fold(x: Tensor, kv_heads: int) -> Tensor:
    """[T, H, D] -> [1, Hkv, G * T, D]: the queries that share a key head become more queries of that head.

    Attention treats every query row alike, so grouped-query attention needs no repeated keys and values.
    """
    return x.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2).unsqueeze(0)


def _unfold(x: Tensor, tokens: int) -> Tensor:
    """Inverse of `_fold`: [1, Hkv, G * T, D] -> [T, H, D]."""
    return x[0].unflatten(1, (-1, tokens)).permute(2, 0, 1, 3).flatten(1, 2)


def _fold_mask(queries: int, keys: int, group: int, causal: bool, like: Tensor) -> Tensor | None:
    if not causal:
        return None
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=like.device).triu_(keys - queries + 1)
    return torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -math.inf).repeat(group, 1)


@torch.library.custom_op("reca_fast::varlen_attention_cpu", mutates_args=(), device_types="cpu")
def _cpu_attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Segment by segment through torch's fused CPU kernel. Opaque to the compiler, so segment lengths never recompile.

    Returns the output [Tq, H, D] and the log-sum-exp [Tq * H], folded segment after segment.
    """
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[0] * q.shape[1], dtype=torch.promote_types(q.dtype, torch.float32))
    for q0, q1, k0, k1 in _segments(q, k, cu_q, cu_k):
        mask = _fold_mask(q1 - q0, k1 - k0, group, causal, q)
        keys, values = (x[k0:k1].transpose(0, 1).unsqueeze(0) for x in (k, v))
        part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _fold(q[q0:q1], kv_heads), keys, values, attn_mask=mask
        )
        out[q0:q1] = _unfold(part, q1 - q0)
        lse[q0 * q.shape[1] : q1 * q.shape[1]] = part_lse.flatten()
    return out, lse


@_cpu_attention.register_fake
def _(q, k, v, cu_q, cu_k, causal):
    return torch.empty_like(q), q.new_empty(q.shape[0] * q.shape[1], dtype=torch.promote_types(q.dtype, torch.float32))


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
    # The keys of a segment without queries get a zero gradient.
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for q0, q1, k0, k1 in _segments(q, k, cu_q, cu_k):
        mask = _fold_mask(q1 - q0, k1 - k0, heads // kv_heads, causal, q)
        keys, values = (x[k0:k1].transpose(0, 1).unsqueeze(0) for x in (k, v))
        part_lse = lse[q0 * heads : q1 * heads].view(1, kv_heads, -1)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _fold(grad[q0:q1], kv_heads),
            _fold(q[q0:q1], kv_heads),
            keys,
            values,
            _fold(out[q0:q1], kv_heads),
            part_lse,
            0.0,
            False,
            attn_mask=mask,
        )
        grad_q[q0:q1] = _unfold(dq, q1 - q0)
        grad_k[k0:k1], grad_v[k0:k1] = dk[0].transpose(0, 1), dv[0].transpose(0, 1)
    return grad_q, grad_k, grad_v


@_cpu_attention_backward.register_fake
def _(grad, q, k, v, out, lse, cu_q, cu_k, causal):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx, inputs, output):
    q, k, v, cu_q, cu_k, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k)


def _backward(ctx, grad_out, grad_lse):
    grads = _cpu_attention_backward(grad_out.contiguous(), *ctx.saved_tensors, ctx.causal)
    return (*grads, None, None, None)


_cpu_attention.register_autograd(_backward, setup_context=_save)


def _run_sdpa(q, k, v, cu_q, cu_k, max_q, max_k, causal):
    if q.device.type == "cpu":
        return _cpu_attention(q, k, v, cu_q, cu_k, causal)[0]
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    parts = [
        _unfold(
            F.scaled_dot_product_attention(
                _fold(q[q0:q1], kv_heads),
                k[k0:k1].transpose(0, 1).unsqueeze(0),
                v[k0:k1].transpose(0, 1).unsqueeze(0),
                attn_mask=_fold_mask(q1 - q0, k1 - k0, group, causal, q),
            ),
            q1 - q0,
        )
        for q0, q1, k0, k1 in _segments(q, k, cu_q, cu_k)
    ]
    return torch.cat([q[:0], *parts])


BACKENDS: dict[str, Backend] = {
    "torch": Backend(_missing_torch, _run_torch),
    "flash_attn": Backend(_missing_flash_attn, _run_flash_attn),
    "xformers": Backend(_missing_xformers, _run_xformers),
    "sdpa": Backend(_always, _run_sdpa),
    "eager": Backend(_always, _run_eager),
}
