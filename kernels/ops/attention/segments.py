"""The segments of an attention call, and the same on the host, cut down to the queries that see a key.

A query sees no key where its segment has none, and, with `causal`, where the segment has too few: of 5 queries on 3
keys the last sees all three and the first two see none. The contract gives such queries an output and gradients of
zero. The libraries that take segments from the host are never shown them: some divide by a number of keys, some return
NaN, some refuse.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.arguments import expect, expect_index
from ..common.transfer import to_device


class Varlen(NamedTuple):
    """The n segments of one attention call, and whether they are causal.

    The flash kernels need the longest lengths on the host, so those are Python numbers. xformers and sdpa need every
    length there, so with these two the host waits for a GPU.
    """

    cu_seqlens_q: Tensor
    """int32 [n + 1] on the device of the queries: where each segment's queries begin, then their number."""
    cu_seqlens_k: Tensor
    """int32 [n + 1]: the same of the keys."""
    max_seqlen_q: int
    """The most queries of a segment."""
    max_seqlen_k: int
    """The most keys of a segment."""
    causal: bool

    @classmethod
    def from_lengths(cls, q_lengths: list[int], k_lengths: list[int], *, causal: bool) -> "Varlen":
        """Segments with these numbers of queries and keys, on the CPU.

        Raises ValueError for lengths that are no whole numbers >= 0, or whose sum takes more than 31 bits.
        """
        for name, lengths in (("q_lengths", q_lengths), ("k_lengths", k_lengths)):
            for length in lengths:
                expect_index(name, length)
            expect(min(lengths, default=0) >= 0, name, "lengths >= 0", lengths)
            expect(sum(lengths) < 2**31, name, "a sum below 2**31", sum(lengths))

        def cumulate(lengths: list[int]) -> Tensor:
            return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)

        longest_q, longest_k = max(q_lengths, default=0), max(k_lengths, default=0)
        return cls(cumulate(q_lengths), cumulate(k_lengths), longest_q, longest_k, causal)

    def to(self, device: torch.device | str) -> "Varlen":
        """The same segments with their offsets on `device`."""
        q, k = to_device(self.cu_seqlens_q, device), to_device(self.cu_seqlens_k, device)
        return self._replace(cu_seqlens_q=q, cu_seqlens_k=k)


class Segment(NamedTuple):
    """Query rows [q0, q1) that all see a key, and the key rows [k0, k1) of their segment."""

    q0: int
    q1: int
    k0: int
    k1: int


def bounds(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor) -> tuple[list[int], list[int]]:
    """The offsets of queries and keys on the host. Waits for a GPU that holds them.

    Raises ValueError for offsets that do not fit the rows; where lengths stay on the GPU nobody can look at them.
    """
    bounds_q, bounds_k = cu_q.tolist(), cu_k.tolist()
    for name, offsets, rows in (("cu_seqlens_q", bounds_q, len(q)), ("cu_seqlens_k", bounds_k, len(k))):
        if offsets[:1] != [0] or offsets[-1] != rows or offsets != sorted(offsets):
            raise ValueError(f"{name}: expected 0 rising to {rows}, got {offsets}")
    if len(bounds_q) != len(bounds_k):
        raise ValueError(f"cu_seqlens_k: expected {len(bounds_q)} offsets like cu_seqlens_q, got {len(bounds_k)}")
    return bounds_q, bounds_k


def visible_segments(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool) -> list[Segment]:
    """The segments in which a query sees a key; waits and raises as `bounds` does."""
    bounds_q, bounds_k = bounds(q, k, cu_q, cu_k)
    visible = []
    for q0, q1, k0, k1 in zip(bounds_q, bounds_q[1:], bounds_k, bounds_k[1:], strict=False):
        first = max(q0, q1 - (k1 - k0)) if causal else q0
        if first < q1 and k0 < k1:
            visible.append(Segment(first, q1, k0, k1))
    return visible


class Alike(NamedTuple):
    """Segments of one size that follow each other: query rows [q0, q1), key rows [k0, k1) of all of them."""

    number: int
    q0: int
    q1: int
    k0: int
    k1: int


def alike(segments: list[Segment]) -> list[Alike]:
    """The same segments, those that follow each other and are of one size taken together."""
    together: list[Alike] = []
    for q0, q1, k0, k1 in segments:
        if together:
            number, first_q, last_q, first_k, last_k = together[-1]
            follows = (q0, k0) == (last_q, last_k)
            if follows and ((q1 - q0) * number, (k1 - k0) * number) == (last_q - first_q, last_k - first_k):
                together[-1] = Alike(number + 1, first_q, q1, first_k, k1)
                continue
        together.append(Alike(1, q0, q1, k0, k1))
    return together


def blind(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output of a call in which no query sees a key: zeros through which q, k and v get gradients of zero."""
    return q.new_zeros(q.shape) + (q[:0].sum() + k[:0].sum() + v[:0].sum())  # sums of no rows


def fold(x: Tensor, kv_heads: int, segments: int = 1) -> Tensor:
    """[N * T, H, D] -> [N, Hkv, G * T, D]: in each of N segments the queries of all G heads that share a key head, as
    queries of one head.

    Every query attends by itself, so this is the same attention, and keys and values need not be repeated G times.
    """
    return x.unflatten(1, (kv_heads, -1)).unflatten(0, (segments, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def unfold(x: Tensor, tokens: int) -> Tensor:
    """Inverse of `fold`: [N, Hkv, G * T, D] with T = tokens -> [N * T, H, D]."""
    return x.unflatten(2, (-1, tokens)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


def fold_mask(queries: int, keys: int, group: int, causal: bool, like: Tensor) -> Tensor | None:
    """The additive mask [G * T, keys] of folded queries in the dtype of `like`; None where every query sees all."""
    if not causal:
        return None
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=like.device).triu_(keys - queries + 1)
    return torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -math.inf).repeat(group, 1)
