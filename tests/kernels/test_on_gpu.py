"""On a machine with a GPU: its own kernels against the authors' sequences, and what only concurrency can break.

Without one, every other file of this folder has interpreted and compiled the same kernels.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from bench.measure import TOLERANCE, disagreement, fresh, under
from bench.ops import KERNELS, NAMES, load
from reca_fast.kernels import flow_matching_loss, qk_norm_rope
from reca_fast.kernels.backend import why_not_triton

WHY_NOT = why_not_triton(torch.device("cuda")) if torch.cuda.is_available() else "there is no NVIDIA GPU"
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
GPU = torch.device("cuda")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_authors(name: str, dtype: torch.dtype) -> None:
    bench = load(name)
    ours = bench.ours if bench.compile is None else under("triton", bench.ours)
    inputs = fresh(bench, bench.shapes["small"], dtype, GPU)
    assert disagreement(ours(inputs), bench.eager(inputs)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", KERNELS)
def test_same_bits_every_time(name: str) -> None:
    """Sums over programs have a fixed order, whichever program finishes last."""
    bench = load(name)
    inputs, ours = fresh(bench, bench.shapes["small"], torch.bfloat16, GPU), under("triton", bench.ours)
    first = ours(inputs)
    for _ in range(20):
        assert all(map(torch.equal, first, ours(inputs)))


def test_sums_of_many_programs() -> None:
    """Thousands of programs, of which the last adds up what all have left."""
    tokens, draw = 36_864, torch.Generator(GPU).manual_seed(0)
    latents, prediction = (torch.randn(tokens, 64, device=GPU, generator=draw) for _ in range(2))
    loss = flow_matching_loss(prediction, latents, torch.zeros(tokens, device=GPU), noise=torch.zeros_like(latents))
    torch.testing.assert_close(loss, (prediction + latents).square().mean())

    q, k = (torch.randn(tokens, heads, 128, device=GPU, generator=draw) for heads in (4, 2))
    weights = [torch.ones(128, device=GPU, requires_grad=True) for _ in "qk"]
    cos, sin = torch.ones(tokens, 128, device=GPU), torch.zeros(tokens, 128, device=GPU)
    got = torch.autograd.grad([x.sum() for x in qk_norm_rope(q, k, *weights, cos, sin)], weights)
    for gradient, x in zip(got, (q, k), strict=True):
        expected = (x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).sum((0, 1))
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-1)


def test_two_streams_at_once() -> None:
    """Each stream has counters of its own."""
    bench = load("flow_matching")
    inputs, ours = fresh(bench, bench.shapes["small"], torch.bfloat16, GPU), under("triton", bench.ours)
    expected, streams = ours(inputs), [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    got = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                got.append(ours(inputs))
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for results in got for x, y in zip(results, expected, strict=True))


def test_labels_on_the_gpu() -> None:
    """Nothing waits for them, and rows that are ignored take no part."""
    bench = load("fused_linear_cross_entropy")
    inputs, ours = fresh(bench, bench.shapes["small"], torch.bfloat16, GPU), under("triton", bench.ours)
    expected = ours(inputs)
    inputs["labels"] = inputs["labels"].to(GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = ours(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert disagreement(got, expected) <= TOLERANCE[torch.bfloat16]
