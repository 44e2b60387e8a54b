"""One mixture-of-transformers layer: two experts with their own weights, one attention over both.

Understanding tokens (text, ViT patches, markers) and generation tokens (noisy latents) live in two contiguous tensors,
so every projection is a plain matrix product; nothing is gathered or scattered by expert. Only keys and values meet, in
`MoTLayer.forward`. When the understanding expert is frozen, none of its rows is part of the autograd graph: they are
computed from tensors without gradient, and the one place where they would depend on trained weights (the two markers
that attend to the noisy latents) is detached. That is the authors' seven detaches, without paying for them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reca_fast.kernels import Varlen, qk_norm_rope, rms_norm, swiglu, to_device, varlen_attention

from .config import LLMConfig

KeyValue = Sequence[Tensor]  # k and v, [N, Hkv, head_dim] each


class Stream(NamedTuple):
    """Rows of one expert: residual stream [N, D] and rotary angles [N, head_dim]."""

    hidden_states: Tensor
    cos: Tensor
    sin: Tensor


class AttentionPlan(NamedTuple):
    """Who attends to what. Understanding rows are ordered [full splits | causal splits | markers of noise splits].

    `*_keys` are int64 rows of the key bank [past | understanding | generation] in the order in which the segments see
    them; None where the queries' own rows are just that. `target_keys` serves the markers and the generation rows.
    """

    full: Varlen | None
    full_keys: Tensor | None
    causal: Varlen | None
    causal_keys: Tensor | None
    markers: Varlen | None
    generation: Varlen | None
    target_keys: Tensor | None
    num_full: int
    num_causal: int

    def to(self, device: torch.device | str) -> "AttentionPlan":
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Varlen) else to_device(value, device)
            for name, value in self._asdict().items()
            if isinstance(value, (Tensor, Varlen))
        }
        return self._replace(**moved)


class RMSNorm(nn.Module):
    """Weight of an RMS norm; the arithmetic is `reca_fast.kernels.rms_norm`."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, eps=self.eps)


class Expert(nn.Module):
    """The weights of one expert in one layer; names as in Qwen2."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps = config.head_dim, config.rms_norm_eps
        self.input_layernorm = RMSNorm(hidden, self.eps)
        self.q_proj = nn.Linear(hidden, heads * self.head_dim)
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim)
        self.v_proj = nn.Linear(hidden, kv_heads * self.head_dim)
        self.q_norm = RMSNorm(self.head_dim, self.eps)
        self.k_norm = RMSNorm(self.head_dim, self.eps)
        self.o_proj = nn.Linear(heads * self.head_dim, hidden, bias=False)
        self.post_attention_layernorm = RMSNorm(hidden, self.eps)
        self.gate_proj = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, hidden, bias=False)

    def project(self, hidden_states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, D] -> q [N, H, head_dim], k and v [N, Hkv, head_dim], normalised and rotated."""
        h = self.input_layernorm(hidden_states)
        q, k, v = (proj(h).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = qk_norm_rope(q, k, self.q_norm.weight, self.k_norm.weight, cos, sin, eps=self.eps)
        return q, k, v

    def finish(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """Residual stream [N, D] and attention output [N, H, head_dim] -> residual stream after the MLP."""
        # The sums go into the products' own memory: nothing else needs a projection's output.
        hidden_states = self.o_proj(attended.flatten(1)).add_(hidden_states)
        h = self.post_attention_layernorm(hidden_states)
        return self.down_proj(swiglu(self.gate_proj(h), self.up_proj(h), reuse_inputs=True)).add_(hidden_states)


class MoTLayer(nn.Module):
    """Decoder layer with an understanding and a generation expert."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.und = Expert(config)
        self.gen = Expert(config)

    def forward(
        self,
        und: Stream | None,
        gen: Stream | None,
        plan: AttentionPlan,
        backend: str,
        past: KeyValue | None = None,
        frozen: bool = True,
        need_und: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, KeyValue | None]:
        """One layer.

        Args:
            und, gen: U understanding and G generation rows; either may be absent (prefix pass, or no markers).
            past: keys and values of an already computed prefix, first in the key bank (inference).
            frozen: cut the way latents -> markers -> latents out of the graph.
            need_und: False in the last layer of a batch without cross-entropy: nobody reads the understanding
                rows there, only their keys and values.

        A trained expert runs even when it has no rows. Its weights then get a zero gradient, so every weight has a
        gradient in every step on every process; FSDP would wait for the missing ones.

        Returns:
            (und [U, D], gen [G, D], keys and values of the understanding rows in a prefix pass, which has no gen);
            und is None (trained: [0, D]) when not needed.
        """
        bank: list[KeyValue] = [] if past is None else [past]
        und_kv = None
        if und is not None:
            und_q, *und_kv = self.und.project(*und)
            bank.append(und_kv)
        if gen is not None:
            gen_q, *gen_kv = self.gen.project(*gen)
            bank.append(gen_kv)

        target: list[Tensor] = []
        if plan.target_keys is not None:
            target = [torch.cat(parts).index_select(0, plan.target_keys) for parts in zip(*bank, strict=True)]
        gen_out = None
        if gen is not None and plan.generation is not None:
            attended = varlen_attention(gen_q, *target, plan.generation, backend=backend)
            gen_out = self.gen.finish(gen.hidden_states, attended)
        elif gen is not None:  # no rows
            gen_out = self.gen.finish(gen.hidden_states, gen_q + sum(x.sum() for x in gen_kv))
        cache = und_kv if gen is None else None
        if und is None or und_kv is None or (frozen and not need_und):
            return None, gen_out, cache
        if not need_und:
            return self.und.finish(und.hidden_states[:0], und_q[:0]), gen_out, cache

        parts = []
        known = und_kv if past is None else [torch.cat(both) for both in zip(past, und_kv, strict=True)]
        full, causal, markers = und_q.tensor_split((plan.num_full, plan.num_full + plan.num_causal))
        for rows, segments, keys in ((full, plan.full, plan.full_keys), (causal, plan.causal, plan.causal_keys)):
            if segments is not None:
                k, v = (x[: rows.shape[0]] if keys is None else x.index_select(0, keys) for x in known)
                parts.append(varlen_attention(rows, k, v, segments, backend=backend))
        if plan.markers is not None:
            k, v = (x.detach() if frozen else x for x in target)
            parts.append(varlen_attention(markers, k, v, plan.markers, backend=backend))
        return self.und.finish(und.hidden_states, torch.cat(parts)), gen_out, cache
