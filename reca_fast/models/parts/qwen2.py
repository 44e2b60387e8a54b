"""Qwen2's decoder over packed rows: the tokens of all samples lie behind one another, without padding.

A row of a sample sees the rows before it. Where what comes first in every sample is frozen and has no gradient (a
prompt before trained queries), it goes through each layer as a stream of its own, the prefix, without a graph:

    prefix rows | sample 0 | sample 1 | ...          computed under no_grad, inside the same call of the layer
    rows        | sample 0 | sample 1 | ...          with gradient; they see [their prefix; their own rows]
    key bank    | past | prefix rows | rows |        keys and values; past is there only in sampling

Nothing else is repeated or gathered. The rows come first in a layer, the rest of the prefix behind them: where a layer
is computed again in the backward pass, it stops before the part of the prefix that no gradient reads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reca_fast.kernels import Varlen, swiglu, to_device, varlen_attention

from .qwen2_config import Qwen2Config
from .rms_norm import RMSNorm
from .rotary import rotary_table, rotate

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of N tokens in one layer, [N, Hkv, head_dim] each; Hkv is the number of key/value heads."""


class Stream(NamedTuple):
    """N rows on their way through the layers, D numbers wide, and the cosines and sines that turn their queries and
    keys.
    """

    hidden_states: Tensor  # [N, D]
    cos: Tensor  # [N, head_dim]
    sin: Tensor  # [N, head_dim]


class View(NamedTuple):
    """Which keys the rows of one attention call see: segment by segment, the last row of a segment all of its keys, the
    row before it all but the last.
    """

    segments: Varlen
    keys: Tensor | None = None  # int64, rows of the key bank in the order of the segments; None: all of it as it is

    def to(self, device: torch.device | str) -> "View":
        """The same with its tensors on a device."""
        keys = None if self.keys is None else to_device(self.keys, device)
        return View(self.segments.to(device), keys)


def causal_view(lengths: Sequence[int]) -> View:
    """The view of rows that see those before them in their own sample. `lengths` are the rows of each sample."""
    return View(Varlen.from_lengths(list(lengths), list(lengths), causal=True))


def view_behind(prefixes: Sequence[int], lengths: Sequence[int]) -> View:
    """The view of rows that see the prefix of their sample, and those before them in their own sample.

    Args:
        prefixes: rows of each sample's prefix (or past), which lie first in the key bank, sample after sample.
        lengths: rows of each sample, which lie behind all prefixes.
    """
    first, start, keys = sum(prefixes), 0, []
    for prefix, length in zip(prefixes, lengths, strict=True):
        keys += [torch.arange(start, start + prefix), torch.arange(first, first + length)]
        start, first = start + prefix, first + length
    seen = [prefix + length for prefix, length in zip(prefixes, lengths, strict=True)]
    order = torch.cat(keys) if keys else torch.zeros(0, dtype=torch.int64)
    return View(Varlen.from_lengths(list(lengths), seen, causal=True), order)


class Qwen2Attention(nn.Module):
    """The projections of a layer's attention, named as in Qwen2."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv)
        self.v_proj = nn.Linear(config.hidden_size, kv)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def queries(self, normed: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[N, D] -> [N, H, head_dim], turned by their positions."""
        return rotate(self._heads(self.q_proj(normed)), cos, sin)

    def keys(self, normed: Tensor, cos: Tensor, sin: Tensor) -> KeyValue:
        """[N, D] -> keys, turned by their positions, and values."""
        return rotate(self._heads(self.k_proj(normed)), cos, sin), self._heads(self.v_proj(normed))

    def _heads(self, projected: Tensor) -> Tensor:
        heads: Tensor = projected.unflatten(-1, (-1, self.head_dim))
        return heads


class Qwen2MLP(nn.Module):
    """[N, D] -> [N, D], row by row; `memory.mlp_rows` may run it in chunks."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, normed: Tensor) -> Tensor:
        out: Tensor = self.down_proj(swiglu(self.gate_proj(normed), self.up_proj(normed), reuse_inputs=True))
        return out


class Qwen2Layer(nn.Module):
    """One decoder layer, its tensors named as in Qwen2."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Qwen2Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Qwen2MLP(config)

    def forward(
        self,
        rows: Stream,
        view: View,
        backend: str,
        prefix: Stream | None = None,
        prefix_view: View | None = None,
        need_prefix: bool = True,
        asked: Tensor | None = None,
        past: KeyValue | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor | None, KeyValue | None]:
        """Run the layer.

        Args:
            rows: N rows.
            view: what they see of the key bank; where `asked` is given, what the asked ones see.
            backend: attention backend, as `reca_fast.kernels.choose_backend` names it.
            prefix: P rows that come before them and take no gradient.
            prefix_view: what those see of themselves.
            need_prefix: whether anybody reads the prefix behind this layer. Behind the last one nobody does.
            asked: int64 [A], in the last layer: the rows that are read behind it. Others give keys and values alone.
            past: in sampling, keys and values in this layer of tokens that went through it before.
            keep: whether keys and values of `rows` are returned.

        Returns:
            The rows [N, D], or [A, D] of those that were asked for.
            The prefix [P, D], or None.
            Keys and values of `rows`, or None.
        """
        attention = self.self_attn
        bank: list[KeyValue] = [] if past is None else [past]
        if prefix is not None:
            with torch.no_grad():
                normed_prefix = self.input_layernorm(prefix.hidden_states)
                prefix_kv = attention.keys(normed_prefix, prefix.cos, prefix.sin)
            bank.append(prefix_kv)
        hidden_states, cos, sin = rows
        normed = self.input_layernorm(hidden_states)
        kv = attention.keys(normed, cos, sin)
        bank.append(kv)
        if asked is not None:
            hidden_states, normed, cos, sin = (x.index_select(0, asked) for x in (hidden_states, normed, cos, sin))
        seen = kv if len(bank) == 1 else tuple(torch.cat(parts) for parts in zip(*bank, strict=True))
        if view.keys is not None:
            seen = tuple(x.index_select(0, view.keys) for x in seen)
        attended = varlen_attention(attention.queries(normed, cos, sin), *seen, view.segments, backend=backend)
        out = self._after_attention(hidden_states, attended)
        if prefix is None or prefix_view is None or not need_prefix:
            return out, None, kv if keep else None
        with torch.no_grad():
            queries = attention.queries(normed_prefix, prefix.cos, prefix.sin)
            attended = varlen_attention(queries, *prefix_kv, prefix_view.segments, backend=backend)
            prefix_out = self._after_attention(prefix.hidden_states, attended)
        return out, prefix_out, kv if keep else None

    def _after_attention(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """Output projection and MLP, each added to the residual stream: [N, D] and [N, H, head_dim] -> [N, D]."""
        # The sums go into the products' own memory: nothing else needs a projection's output.
        hidden_states = self.self_attn.o_proj(attended.flatten(1)).add_(hidden_states)
        out: Tensor = self.mlp(self.post_attention_layernorm(hidden_states)).add_(hidden_states)
        return out


class Qwen2Decoder(nn.Module):
    """The layers and the final norm; embedding and head are the model's own.

    Args:
        config: sizes.
    """

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Qwen2Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def stream(self, hidden_states: Tensor, positions: Tensor) -> Stream:
        """Rows [N, D] at these positions, int64 [N], as the layers take them."""
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        return Stream(hidden_states, *rotary_table(positions, self.config.head_dim, self.config.rope_theta, wide))

    def forward(
        self,
        rows: Stream,
        view: View,
        backend: str,
        *,
        prefix: Stream | None = None,
        prefix_view: View | None = None,
        asked: Tensor | None = None,
        asked_view: View | None = None,
        past: Sequence[KeyValue] | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run all layers and the final norm.

        Args:
            rows, view, backend, prefix, prefix_view: as `Qwen2Layer` takes them.
            asked: int64 [A], the rows whose result is read; None for all.
            asked_view: what those see of the key bank; needed with `asked`.
            past: in sampling, for each layer, keys and values of what went through before.
            keep: whether to return keys and values.

        Returns:
            [N, D] or [A, D] behind the final norm.
            For each layer keys and values of the rows; empty without `keep`.
        """
        kept: list[KeyValue] = []
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            out, prefix_out, kv = layer(
                rows,
                view if number < last or asked_view is None else asked_view,
                backend,
                prefix,
                prefix_view,
                number < last,
                asked if number == last else None,
                None if past is None else past[number],
                keep,
            )
            rows = rows._replace(hidden_states=out)
            if prefix is not None and prefix_out is not None:
                prefix = prefix._replace(hidden_states=prefix_out)
            if kv is not None:
                kept.append(kv)
        normed: Tensor = self.norm(rows.hidden_states)
        return normed, kept
