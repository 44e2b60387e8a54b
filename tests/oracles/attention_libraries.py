"""Stand-ins for attention libraries, with the signatures of their releases.

Each checks every argument that its kernels insist on, and computes what the documentation promises.
"""

import sys
import types
from typing import Any

import pytest
import torch

from tests.oracles.attention import definition


def documented_attention(q, k, v, cu_q, cu_k, max_q, max_k, causal):
    """What both libraries document for these arguments, after a check of everything their kernels insist on."""
    assert q.dtype == k.dtype == v.dtype
    assert all(x.dim() == 3 and x.is_contiguous() for x in (q, k, v)), "[total tokens, heads, head dim]"
    assert q.shape[1] % k.shape[1] == 0 and k.shape == v.shape
    assert cu_q.dtype == cu_k.dtype == torch.int32 and cu_q.shape == cu_k.shape
    assert cu_q[0] == cu_k[0] == 0 and cu_q[-1] == len(q) and cu_k[-1] == len(k)
    assert (type(max_q), type(max_k)) == (int, int), "device tensors would synchronise"
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    return definition(q, k, v, (cu_q.diff().tolist(), cu_k.diff().tolist()), causal)


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """varlen_attn of torch 2.10; grouped queries as they are."""
    assert return_aux is None
    return documented_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal)


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """varlen_attn of torch 2.11: causal is a window; grouped queries as they are."""
    assert return_aux is scale is None and window_size in ((-1, -1), (-1, 0))
    return documented_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0))


def torch_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """varlen_attn of torch 2.12 and 2.13: grouped queries need their keyword."""
    assert return_aux is scale is seqused_k is block_table is num_splits is None
    assert window_size in ((-1, -1), (-1, 0))
    assert enable_gqa or query.shape[1] == key.shape[1], "grouped queries need enable_gqa=True"
    return documented_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0))


def flash_2(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
):
    """flash_attn.flash_attn_varlen_func since 2.1: causal is aligned at the bottom right; grouped queries by shape."""
    assert dropout_p == 0.0 and softmax_scale is None and window_size == (-1, -1)
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    return documented_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)


def flash_3(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    deterministic=False,
):
    """flash_attn_interface.flash_attn_varlen_func: other arguments before `causal`."""
    assert seqused_q is seqused_k is softmax_scale is qv is None
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    return documented_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)


def flash_4(
    q,
    k,
    v,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    seqused_q=None,
    seqused_k=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    deterministic=False,
):
    """flash_attn.cute.flash_attn_varlen_func: returns the log-sum-exp as well."""
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    return documented_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal), None


TORCHES = {"torch 2.10": torch_2_10, "torch 2.11": torch_2_11, "torch 2.13": torch_2_13}


FLASHES = {
    "flash_attn": ("flash_attn", flash_2),
    "flash_attn_3": ("flash_attn_interface", flash_3),
    "flash_attn_4": ("flash_attn.cute", flash_4),
}


def install(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    """A module of that name with these functions, and the packages around it with nothing."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        made = types.ModuleType(".".join(parts[:depth]))
        made.__path__ = []
        monkeypatch.setitem(sys.modules, made.__name__, made)
        if depth > 1:
            setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], made)
    vars(sys.modules[module]).update(functions)
