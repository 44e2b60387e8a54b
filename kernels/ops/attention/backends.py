"""The libraries behind `varlen_attention`: for each, whether it can compute on a device, and how it is called.

torch         torch.nn.attention.varlen, FlashAttention inside torch: the default on Ampere and newer GPUs
flash_attn_3  FlashAttention-3 (flash_attn_interface, built from its source), for Hopper
flash_attn_4  FlashAttention-4 (flash_attn.cute, from the flash-attn-4 package), for Hopper and Blackwell
flash_attn    FlashAttention-2, from the flash-attn package
xformers      memory-efficient attention with block-diagonal bias objects; GPUs older than Ampere; on a CPU the bias
              objects are materialised (that is how their meaning is tested without a GPU)
sdpa          torch's scaled_dot_product_attention, segment by segment; the default on CPUs
eager         matrix products and a softmax under one dense mask: the definition that the others are compared with

A library counts as found when the function that is called here can be imported, not when a package has its name.
"""

import inspect
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from .cpu import cpu_attention
from .segments import Varlen, blind, fold, fold_mask, unfold, visible_segments


class Backend(NamedTuple):
    """One way to compute `varlen_attention`."""

    missing: Callable[[torch.device, torch.dtype], str | None]
    """None when it can compute in that dtype on that device, else what it lacks."""
    attend: Callable[[Tensor, Tensor, Tensor, Varlen], Tensor]
    """q [Tq, H, D], k and v [Tk, Hkv, D], segments -> [Tq, H, D]."""


def _not_found(module: str, function: str, package: str, remedy: str) -> str | None:
    """None when `function` can be imported from `module`, else the reason as a phrase.

    Imports the module: a package of that name may be an empty shell (flash-attn-4 alone brings a flash_attn with
    nothing but `cute` in it) or built for another torch.
    """
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            return f"{module} cannot be imported: {error}"
        return f"{package} is not installed; {remedy}"
    except (ImportError, OSError, RuntimeError) as error:  # a library built for another torch, or without its driver
        return f"{module} cannot be imported: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return None if hasattr(found, function) else f"{module} has no {function}; {package} is not installed; {remedy}"


def _unfit(device: torch.device, dtype: torch.dtype, oldest: tuple[int, int], newest: tuple[int, int]) -> str | None:
    """Why FlashAttention cannot run there; None when it can. Compute capabilities are inclusive."""
    names = {(8, 0): "8.0 (Ampere)", (9, 0): "9.0 (Hopper)"}
    if device.type != "cuda":
        return "needs an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < oldest:
        return f"needs compute capability {names[oldest]} or newer"
    if capability > newest:
        return f"needs a GPU of compute capability {names[newest]}, this one has {capability[0]}.{capability[1]}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs fp16 or bf16, not {dtype}"
    return None


_ANY = (99, 0)


def _missing_torch(device: torch.device, dtype: torch.dtype) -> str | None:
    return _unfit(device, dtype, (8, 0), _ANY)


def _torch_keywords(function: Callable[..., Any]) -> dict[bool, dict[str, Any]]:
    """causal -> keywords of this `varlen_attn`: they differ between releases of torch.

    2.10 says is_causal; 2.11 window_size instead, where (-1, 0) is causal; 2.12 adds enable_gqa, without which it
    refuses grouped queries, which the older ones take as they are.
    """
    known = inspect.signature(function).parameters
    grouped = {"enable_gqa": True} if "enable_gqa" in known else {}
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return {False: grouped, True: grouped | causal}


TORCH_KEYWORDS = _torch_keywords(varlen_attn)


def _by_torch(q: Tensor, k: Tensor, v: Tensor, segments: Varlen) -> Tensor:
    offsets_and_lengths: tuple[Any, ...] = segments[:4]
    out: Any = varlen_attn(q, k, v, *offsets_and_lengths, **TORCH_KEYWORDS[segments.causal])
    return out


def _by_flash(function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, segments: Varlen) -> Tensor:
    """flash_attn_varlen_func of FlashAttention 2, 3 or 4, which agree on these keywords.

    Some releases of 3 and 4 return the log-sum-exp as well.
    """
    exact = {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}
    out = function(q, k, v, **segments._asdict(), **exact)
    return out[0] if isinstance(out, tuple) else out


def _missing_flash_attn(device: torch.device, dtype: torch.dtype) -> str | None:
    """The GPU is looked at first, here and below: nobody should compile for an hour what cannot run on it."""
    remedy = "pip install --no-build-isolation 'reca-fast[flash-attn]' compiles it, for an hour or so"
    return _unfit(device, dtype, (8, 0), _ANY) or _not_found(
        "flash_attn", "flash_attn_varlen_func", "flash-attn", remedy
    )


def _by_flash_attn(q: Tensor, k: Tensor, v: Tensor, segments: Varlen) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return _by_flash(flash_attn_varlen_func, q, k, v, segments)


def _missing_flash_attn_3(device: torch.device, dtype: torch.dtype) -> str | None:
    remedy = "it is built from the folder `hopper` of flash-attention's sources"
    return _unfit(device, dtype, (9, 0), (9, 0)) or _not_found(
        "flash_attn_interface", "flash_attn_varlen_func", "FlashAttention-3", remedy
    )


def _by_flash_attn_3(q: Tensor, k: Tensor, v: Tensor, segments: Varlen) -> Tensor:
    from flash_attn_interface import flash_attn_varlen_func

    return _by_flash(flash_attn_varlen_func, q, k, v, segments)


def _missing_flash_attn_4(device: torch.device, dtype: torch.dtype) -> str | None:
    remedy = "pip install --pre flash-attn-4"
    return _unfit(device, dtype, (9, 0), _ANY) or _not_found(
        "flash_attn.cute", "flash_attn_varlen_func", "flash-attn-4", remedy
    )


def _by_flash_attn_4(q: Tensor, k: Tensor, v: Tensor, segments: Varlen) -> Tensor:
    from flash_attn.cute import flash_attn_varlen_func

    return _by_flash(flash_attn_varlen_func, q, k, v, segments)


def _missing_xformers(device: torch.device, dtype: torch.dtype) -> str | None:
    remedy = "pip install 'reca-fast[gpu]'"
    absent = _not_found("xformers.ops", "memory_efficient_attention", "xformers", remedy)
    if absent or device.type != "cuda":
        return absent
    from xformers import _cpp_lib

    if _cpp_lib._cpp_library_load_exception is not None:
        return f"xformers was built for another torch than {torch.__version__}; install the matching release"
    if dtype is torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 (Ampere) or newer for bf16"
    return None


def xformers_bias(q_lengths: list[int], k_lengths: list[int], causal: bool):
    """The bias object of the contract; it knows no rows that see no key."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask, BlockDiagonalMask

    kind = BlockDiagonalCausalFromBottomRightMask if causal else BlockDiagonalMask
    return kind.from_seqlens(q_lengths, k_lengths)


def _by_xformers(q: Tensor, k: Tensor, v: Tensor, segments: Varlen) -> Tensor:
    """On the queries that see a key and the keys that are seen, moved together where others lie between them."""
    visible = visible_segments(q, k, segments.cu_seqlens_q, segments.cu_seqlens_k, segments.causal)
    if not visible:
        return blind(q, k, v)
    q_lengths, k_lengths = [s.q1 - s.q0 for s in visible], [s.k1 - s.k0 for s in visible]
    bias = xformers_bias(q_lengths, k_lengths, segments.causal)
    if sum(k_lengths) < len(k):
        k, v = (torch.cat([x[s.k0 : s.k1] for s in visible]) for x in (k, v))
    if sum(q_lengths) == len(q):
        return _xformers(q, k, v, bias)
    rows = torch.cat([torch.arange(s.q0, s.q1, device=q.device) for s in visible])
    return torch.index_copy(torch.zeros_like(q), 0, rows, _xformers(q.index_select(0, rows), k, v, bias))


def _xformers(q: Tensor, k: Tensor, v: Tensor, bias: Any) -> Tensor:
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
    """Attention under an additive mask [Tq, Tk], softmax in fp32 or wider; zero where a row of the mask is all -inf."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1).transpose(0, 1).to(wide) for x in (k, v))
    scores = q.transpose(0, 1).to(wide) @ k.transpose(1, 2) / math.sqrt(q.shape[2]) + bias.to(wide)
    # Taken out before and after: the softmax of nothing but -inf is NaN, and so is its gradient.
    unseen = bias.isneginf().all(-1, keepdim=True)
    weights = scores.masked_fill(unseen, 0).softmax(-1).masked_fill(unseen, 0)
    return (weights @ v).transpose(0, 1).to(q.dtype)


def _by_eager(q: Tensor, k: Tensor, v: Tensor, segments: Varlen) -> Tensor:
    cu_q, cu_k, *_, causal = segments
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


def _always(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _by_sdpa(q: Tensor, k: Tensor, v: Tensor, segments: Varlen) -> Tensor:
    cu_q, cu_k, *_, causal = segments
    if q.device.type == "cpu":
        return cpu_attention(q, k, v, cu_q, cu_k, causal)[0]
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    visible = visible_segments(q, k, cu_q, cu_k, causal)
    parts: list[Tensor] = []
    done = 0
    for q0, q1, k0, k1 in visible:
        seen = F.scaled_dot_product_attention(
            fold(q[q0:q1], kv_heads),
            k[k0:k1].transpose(0, 1).unsqueeze(0),
            v[k0:k1].transpose(0, 1).unsqueeze(0),
            attn_mask=fold_mask(q1 - q0, k1 - k0, group, causal, q),
        )
        parts += [torch.zeros_like(q[done:q0]), unfold(seen, q1 - q0)]
        done = q1
    return torch.cat([*parts, torch.zeros_like(q[done:])]) if visible else blind(q, k, v)


BACKENDS: dict[str, Backend] = {
    "torch": Backend(_missing_torch, _by_torch),
    "flash_attn_3": Backend(_missing_flash_attn_3, _by_flash_attn_3),
    "flash_attn_4": Backend(_missing_flash_attn_4, _by_flash_attn_4),
    "flash_attn": Backend(_missing_flash_attn, _by_flash_attn),
    "xformers": Backend(_missing_xformers, _by_xformers),
    "sdpa": Backend(_always, _by_sdpa),
    "eager": Backend(_always, _by_eager),
}
"""Every backend by name, best first."""
