"""Attention over segments as its definition says it, and the random segments that it is tried on."""

import math
import random

import torch
from torch import Tensor


def definition(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[list[int], list[int]], causal: bool) -> Tensor:
    """The contract, segment by segment and head by head, in the dtype of its inputs. Rows that see no key are left at
    zero, outside the graph.
    """
    group, out = q.shape[1] // k.shape[1], []
    for qs, ks, vs in zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True):
        behind = len(ks) - len(qs)  # the last query sees every key, the one before it all but the last, ...
        sees = torch.tensor([not causal or j <= i + behind for i in range(len(qs)) for j in range(len(ks))]).bool()
        sees = sees.view(len(qs), len(ks))
        some = sees.any(1)
        heads = []
        for h in range(q.shape[1]):
            scores = qs[some, h] @ ks[:, h // group].T / math.sqrt(q.shape[2])
            seen = scores.masked_fill(~sees[some], -math.inf).softmax(-1) @ vs[:, h // group]
            heads.append(torch.zeros_like(qs[:, h]).index_copy(0, some.nonzero()[:, 0], seen))
        out.append(torch.stack(heads, dim=1))
    return torch.cat([q[:0] + k[:0].sum() + v[:0].sum(), *out])


def ragged(seed: int) -> tuple[list[int], list[int]]:
    """Query and key lengths: a lone query, as many keys as queries, more keys than queries."""
    draw = random.Random(seed)
    q = [1, 5, draw.randint(2, 9), draw.randint(2, 9)]
    return q, [4, 5, q[2] + draw.randint(1, 9), q[3] + draw.randint(1, 40)]


def inputs(lengths: tuple[list[int], list[int]], heads: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and a gradient of the output."""
    draw = torch.Generator().manual_seed(0)
    (queries, keys), (h, hkv, d) = map(sum, lengths), heads
    shapes = [(queries, h, d), (keys, hkv, d), (keys, hkv, d), (queries, h, d)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def forward_backward(attend, tensors: list[Tensor]) -> list[Tensor]:
    """[output, dq, dk, dv] of attend(q, k, v)."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors[:3]]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]
