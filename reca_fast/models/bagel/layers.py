"""One layer of the mixture of transformers: two experts with weights of their own, and one attention over both.

The understanding expert has the text, the patches of the vision tower and the markers; the generation expert has the
noisy latents. The rows of each lie in a tensor of their own (a stream), so every projection is a plain matrix product
and nothing is gathered or scattered by expert. Keys and values alone meet, in `MoTLayer.forward`.

When the understanding expert is frozen, no gradient may flow through its rows, not only to its weights. Its rows are
computed from tensors without gradient; the one place where they depend on trained weights, the two markers that attend
to the noisy latents, is detached. The result is that of the authors' code, which detaches in seven places, without the
cost of a backward pass through the frozen half (docs/models/bagel.md, "Which gradients exist").
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reca_fast.kernels import Varlen, qk_norm_rope, swiglu, to_device, varlen_attention
from reca_fast.models.parts.rms_norm import RMSNorm

from .config import LLMConfig

KeyValue = Sequence[Tensor]
"""Keys and values of N tokens in one layer, [N, Hkv, head_dim] each; Hkv is the number of key/value heads."""


class Stream(NamedTuple):
    """The N rows of one expert, D numbers wide, and the cosines and sines that turn their queries and keys."""

    hidden_states: Tensor  # [N, D]
    cos: Tensor  # [N, head_dim]
    sin: Tensor  # [N, head_dim]


class AttentionPlan(NamedTuple):
    """Which rows attend to which, for all samples of a pack: four attention calls without a mask tensor.

    A sample of RECA is a picture (a "full" split), a prompt (a "causal" split) and a target (a "noise" split), each
    between two markers. As they stand in the pack, one behind another (m marker, v vision patch, p prompt token,
    x latent), and as they stand in the streams, sorted by what they may see:

        pack       | m v v v v m | m p p p m | m x x x x m |  next sample ...
                        full         causal       noise

        und rows   | full splits of all samples | causal splits of all samples | markers of all noise splits |
        gen rows   | latents of all samples |
        key bank   | past | und rows | gen rows |      keys and values; past is there only in sampling

    What a row sees, all of it in its own sample (and in the past of its own sample, which all rows see):

        rows      in the call   earlier full and causal splits   own split
        full      full          all                              all
        causal    causal        all                              up to the row itself
        markers   markers       all                              all: both markers, all latents
        latents   generation    all                              all: both markers, all latents

    Nothing sees a noise split from outside. In each call, one segment is the rows of one split with the keys that they
    see, and `*_keys` are the rows of the key bank that hold the keys of all segments, in order.

    Attributes:
        full, causal, markers, generation: the segments of each call; None if the pack has no such rows.
        full_keys: int64 rows of the key bank; None if each segment's keys are its own queries' rows, as in RECA.
        causal_keys: int64 rows of the key bank.
        target_keys: int64 rows of the key bank, for the markers and the latents alike.
        generation_keys: int64 rows of the key bank for the latents, where some of them are a condition without noise:
            then target_keys are those of the markers alone. None otherwise.
        num_full, num_causal: how many und rows lie in full and in causal splits; the remaining ones are markers.
        und_padding, gen_padding: how many rows without meaning each stream has at its end (`padding.py`).
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
    und_padding: int = 0
    gen_padding: int = 0
    generation_keys: Tensor | None = None

    def to(self, device: torch.device | str) -> "AttentionPlan":
        """The same plan with its tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Varlen) else to_device(value, device)
            for name, value in self._asdict().items()
            if isinstance(value, (Tensor, Varlen))
        }
        return self._replace(**moved)


AFTER_ATTENTION = ("o_proj", "post_attention_layernorm", "gate_proj", "up_proj", "down_proj")
"""Parts of an expert that `Expert.after_attention` alone reads."""


class Expert(nn.Module):
    """The weights of one expert in one layer, named as in Qwen2, and what it does before and after attention."""

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
        """What attention needs of N rows.

        Args:
            hidden_states: [N, D].
            cos, sin: [N, head_dim], of the rotation by position.

        Returns:
            q [N, H, head_dim], k and v [N, Hkv, head_dim]; q and k are normalised per head and rotated.
        """
        h = self.input_layernorm(hidden_states)
        q, k, v = (proj(h).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = qk_norm_rope(q, k, self.q_norm.weight, self.k_norm.weight, cos, sin, eps=self.eps)
        return q, k, v

    def after_attention(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer: output projection and MLP, each added to the residual stream.

        Args:
            hidden_states: [N, D], the residual stream that entered the layer.
            attended: [N, H, head_dim], the output of attention.

        Returns:
            [N, D], the residual stream that leaves the layer.
        """
        # The sums go into the products' own memory: nothing else needs a projection's output.
        hidden_states = self.o_proj(attended.flatten(1)).add_(hidden_states)
        return self.mlp(self.post_attention_layernorm(hidden_states)).add_(hidden_states)

    def mlp(self, h: Tensor) -> Tensor:
        """[N, D] -> [N, D], row by row; `memory.mlp_rows` may run it in chunks."""
        out: Tensor = self.down_proj(swiglu(self.gate_proj(h), self.up_proj(h), reuse_inputs=True))
        return out


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
        keep: bool = False,
    ) -> tuple[Tensor | None, Tensor | None, KeyValue | None]:
        """Run one layer on both streams.

        A trained expert runs even when it has no rows. Its weights then get a zero gradient, so that every weight has a
        gradient in every step on every process: FSDP would wait for the missing ones.

        Args:
            und, gen: U understanding and G generation rows. gen is None when sampling runs conditions and prompts
                through the decoder; und is None for targets without markers.
            plan: which rows attend to which.
            backend: attention backend, as `reca_fast.kernels.choose_backend` names it.
            past: in sampling, keys and values of the conditions and prompts that went through this layer before. They
                come first in the key bank.
            frozen: let no gradient flow from the latents through the markers back to the latents.
            need_und: whether anything reads the understanding rows that leave this layer. Without labels nothing reads
                those of the last layer, where only their keys and values count.
            keep: return the keys and values of all rows, in sampling from conditions that are latents.

        Returns:
            und [U, D]: None where it is not needed, or [0, D] there if its expert is trained.
            gen [G, D]: None if gen was None.
            Keys and values: of the understanding rows if gen was None, of all rows with keep, else None.
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
        everything = [torch.cat(parts) for parts in zip(*bank, strict=True)] if plan.generation_keys is not None else []
        gen_out = None
        if gen is not None and plan.generation is not None:
            seen = target
            if plan.generation_keys is not None:
                seen = [part.index_select(0, plan.generation_keys) for part in everything]
            attended = varlen_attention(gen_q, *seen, plan.generation, backend=backend)
            gen_out = self.gen.after_attention(gen.hidden_states, attended)
        elif gen is not None:  # no rows
            gen_out = self.gen.after_attention(gen.hidden_states, gen_q + sum(x.sum() for x in gen_kv))
        cache = und_kv if gen is None else everything if keep else None
        if und is None or und_kv is None or (frozen and not need_und):
            return None, gen_out, cache
        if not need_und:
            return self.und.after_attention(und.hidden_states[:0], und_q[:0]), gen_out, cache

        parts = []
        known: KeyValue = []
        if plan.full is not None or plan.causal is not None:  # a step of sampling has markers alone
            known = und_kv if past is None else [torch.cat(both) for both in zip(past, und_kv, strict=True)]
            if everything:  # conditions that are latents, whose gradient a frozen expert passes on no more than markers
                known = [part.detach() if frozen else part for part in everything]
        full, causal, markers = und_q.tensor_split((plan.num_full, plan.num_full + plan.num_causal))
        for rows, segments, keys in ((full, plan.full, plan.full_keys), (causal, plan.causal, plan.causal_keys)):
            if segments is not None:
                k, v = (x[: rows.shape[0]] if keys is None else x.index_select(0, keys) for x in known)
                parts.append(varlen_attention(rows, k, v, segments, backend=backend))
        if plan.markers is not None:
            k, v = (x.detach() if frozen else x for x in target)
            parts.append(varlen_attention(markers, k, v, plan.markers, backend=backend))
        return self.und.after_attention(und.hidden_states, torch.cat(parts)), gen_out, cache
