"""Latents of BAGEL's target pictures attending to their whole samples: a library's kernel, chosen by what is there."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.ops.case import Case, Inputs, gradients
from reca_fast.kernels import BACKENDS, Varlen, choose_backend, varlen_attention


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    pictures, queries, keys, heads, kv_heads, head_dim = shape.values()

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype).requires_grad_()

    return {
        "q": normal(pictures * queries, heads, head_dim),
        "k": normal(pictures * keys, kv_heads, head_dim),
        "v": normal(pictures * keys, kv_heads, head_dim),
        "segments": Varlen.from_lengths([queries] * pictures, [keys] * pictures, causal=False).to(device),
    }


def library(name: str, inputs: Inputs) -> list[Tensor]:
    q, k, v, segments = inputs.values()
    backend = choose_backend(name, q.device, q.dtype)
    return gradients(varlen_attention(q, k, v, segments, backend=backend), inputs)


def eager(inputs: Inputs) -> list[Tensor]:
    """A dense additive mask per sample and keys repeated to all heads, as where the authors do not compile a mask."""
    q, k, v, segments = inputs.values()
    group, outputs = q.shape[1] // k.shape[1], []
    lengths = segments.cu_seqlens_q.diff().tolist(), segments.cu_seqlens_k.diff().tolist()
    for queries, keys, values in zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True):
        mask = torch.zeros(len(queries), len(keys), dtype=torch.float32, device=q.device).to(q.dtype)
        keys, values = (x.repeat_interleave(group, dim=1).transpose(0, 1)[None] for x in (keys, values))
        attended = F.scaled_dot_product_attention(queries.transpose(0, 1)[None], keys, values, attn_mask=mask)
        outputs.append(attended[0].transpose(0, 1))
    return gradients(torch.cat(outputs), inputs)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def flex_forward(q: Tensor, k: Tensor, v: Tensor, segments: Varlen) -> Tensor:
    """The authors' default: the mask as a function, compiled; in every step its blocks are made again."""
    q_segment, k_segment = (
        torch.bucketize(torch.arange(len(x), device=x.device), ends[1:-1], right=True)
        for x, ends in ((q, segments.cu_seqlens_q), (k, segments.cu_seqlens_k))
    )

    def same(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return q_segment[i] == k_segment[j]

    blocks = create_block_mask(same, None, None, len(q), len(k), device=q.device)
    attend: Any = _compiled_flex() if q.is_cuda else flex_attention
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    return attend(*heads_first, block_mask=blocks, enable_gqa=True)[0].transpose(0, 1)


def flex(inputs: Inputs) -> list[Tensor]:
    return gradients(flex_forward(*inputs.values()), inputs)


CASE = Case(
    name="attention",
    about="target latents attend to their whole samples; ours takes the library's kernel that suits the machine",
    shapes={
        "real": {"pictures": 8, "queries": 4096, "keys": 4379, "heads": 28, "kv_heads": 4, "head_dim": 128},
        "small": {"pictures": 2, "queries": 48, "keys": 64, "heads": 28, "kv_heads": 4, "head_dim": 128},
        "cpu": {"pictures": 2, "queries": 256, "keys": 288, "heads": 28, "kv_heads": 4, "head_dim": 128},
    },
    inputs=make_inputs,
    ours=partial(library, "auto"),
    eager=eager,
    compile=None,
    gates={},
    peers={"flex_attention": flex} | {name: partial(library, name) for name in BACKENDS if name != "eager"},
    goal="no kernel of ours: torch's variable-length FlashAttention on GPUs, its fused kernel per sample on CPUs",
)
