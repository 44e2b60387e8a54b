"""Every attention backend that can run here against a softmax in float64, outputs and all three gradients."""

from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.kernels import Varlen, available_backends, varlen_attention

from .report import Report

TOLERANCE = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 1e-4}
"""Largest error of an output or gradient, as a share of its root mean square."""


class Case(NamedTuple):
    """Segments as (queries, keys) each."""

    segments: list[tuple[int, int]]
    causal: bool = False
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128


CASES = {
    "latents see their samples": Case([(256, 300), (64, 120), (1, 40)]),
    "vision tower, head width 72": Case([(256, 256), (144, 144), (17, 17)], heads=16, kv_heads=16, head_dim=72),
    "causal": Case([(130, 130), (1, 1), (77, 77)], causal=True),
    "causal, more keys than queries": Case([(40, 297), (21, 300), (2, 129)], causal=True),
    "one query": Case([(1, 257)], causal=True),
    "64 segments": Case([(1 + 5 * n % 17, 18 + 7 * n % 23) for n in range(64)], heads=7, kv_heads=1),
    "no queries in between": Case([(33, 40), (0, 12), (21, 64)]),
    "rows that see no key": Case([(30, 50), (20, 0), (40, 60)]),
}
"""The sizes of BAGEL's layers; the last one last: a library that cannot do it may take the process with it."""


def hand_in(report: Report) -> None:
    backends = available_backends(report.device, torch.bfloat16)
    usable = [name for name, why_not in backends.items() if why_not is None]
    report.figure("backends", ", ".join(usable), expected="at least two", ok=len(usable) >= 2)
    for case_name, case in CASES.items():
        for dtype in (torch.bfloat16, torch.float16):
            for name in usable:
                if report.rehearsal and dtype is torch.float16:
                    continue
                title = f"{name}, {case_name}, {str(dtype).removeprefix('torch.')}"
                report.attempt(title, compare, report, title, name, case, dtype)


def compare(report: Report, title: str, backend: str, case: Case, dtype: torch.dtype) -> None:
    report.at_most(title, error(backend, case, dtype, report.device), TOLERANCE[dtype], "of its size")


def error(backend: str, case: Case, dtype: torch.dtype, device: torch.device) -> float:
    """Largest error over the output and the gradients of q, k and v; infinite where one is not finite."""
    q, k, v, upstream, segments = inputs(case, dtype, device)
    narrow = results(varlen_attention(q, k, v, segments, backend=backend), (q, k, v), upstream)
    wide_q, wide_k, wide_v = (x.detach().double().requires_grad_() for x in (q, k, v))
    expected = results(exact(wide_q, wide_k, wide_v, case), (wide_q, wide_k, wide_v), upstream.double())
    worst = 0.0
    for got, truth in zip(narrow, expected, strict=True):
        size = truth.square().mean().sqrt().clamp(min=1e-12)
        off = ((got.double() - truth).square().mean().sqrt() / size).item()
        worst = max(worst, off if off == off else float("inf"))
    return worst


def inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Varlen]:
    draw = torch.Generator().manual_seed(0)
    queries, keys = (sum(lengths) for lengths in zip(*case.segments, strict=True))

    def normal(rows: int, heads: int) -> Tensor:
        return torch.randn(rows, heads, case.head_dim, generator=draw).to(device, dtype)

    q, upstream = normal(queries, case.heads), normal(queries, case.heads)
    k, v = normal(keys, case.kv_heads), normal(keys, case.kv_heads)
    lengths = [list(part) for part in zip(*case.segments, strict=True)]
    segments = Varlen.from_lengths(*lengths, causal=case.causal).to(device)
    return *(x.requires_grad_() for x in (q, k, v)), upstream, segments


def results(out: Tensor, wanted: list[Tensor] | tuple[Tensor, ...], upstream: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, wanted, upstream)]


def exact(q: Tensor, k: Tensor, v: Tensor, case: Case) -> Tensor:
    """softmax(q k^T / sqrt(D)) v per segment, bottom right aligned if causal; 0 where a row sees no key."""
    group, outputs, first_q, first_k = case.heads // case.kv_heads, [], 0, 0
    for queries, keys in case.segments:
        own_q = q[first_q : first_q + queries].transpose(0, 1)
        own_k, own_v = (x[first_k : first_k + keys].transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
        scores = own_q @ own_k.mT / case.head_dim**0.5
        if case.causal:
            hidden = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(keys - queries + 1)
            scores = scores.masked_fill(hidden, float("-inf"))
        outputs.append((scores.softmax(-1) @ own_v).transpose(0, 1))  # a product over no keys is 0
        first_q, first_k = first_q + queries, first_k + keys
    return torch.cat(outputs)
