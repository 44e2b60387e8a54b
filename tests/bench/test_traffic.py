"""Bytes and launches of every operation against its goal, and the counter against sums done by hand."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from bench.ops import WITH_KERNELS, case_of
from bench.traffic import counting
from reca_fast.kernels.common.implementation import kernels
from reca_fast.kernels.common.optional_triton import tl, triton

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@triton.jit
def _add_one(X, Y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + offsets, mask=offsets < n, other=0.0)
    again = tl.load(X + offsets, mask=offsets < n, other=0.0)
    tl.store(Y + offsets, (x + again) * 0.5 + 1, mask=offsets < n)


def test_kernels_count_unmasked_lanes() -> None:
    x, y = torch.zeros(100), torch.empty(100)
    with counting() as traffic:
        _add_one[(2,)](x, y, 100, BLOCK=64)
    assert (traffic.launches, traffic.bytes_read, traffic.bytes_written) == (1, 800, 400)
    assert traffic.unique_bytes == 800  # the second load of an address is the cache's business


def test_torch_counts_inputs_and_outputs_and_no_views() -> None:
    x, w = torch.zeros(10, 20, requires_grad=True), torch.zeros(10, 30)
    with counting() as traffic:
        (x.t() @ w).relu().sum().backward()
    assert traffic.matmuls == 2 and traffic.flops == 2 * (2 * 10 * 20 * 30)
    # relu, sum, and in the backward pass the ones it starts from and the threshold; t and expand are views
    assert traffic.kernels == ["relu", "sum", "ones_like", "threshold_backward"]
    rows = 20 * 30 * 4
    assert traffic.bytes_read == rows + rows + 2 * rows
    assert traffic.bytes_written == rows + 4 + 4 + rows


FEWER = {
    "adaln_modulate": {"rows": 16},
    "blur_patch_embed": {"width": 384},
    "flow_matching": {"tokens": 256},
    "mar_residual_block": {"rows": 16},
    "qk_norm_rope": {"tokens": 8},
    "template_concat": {"text": 4, "visual": 4, "pictures": 2},
}
"""Sizes that the goals hold at as they do at the "small" ones, at a fraction of the interpreter's time."""


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_traffic_and_launches_reach_their_goals(name: str) -> None:
    case = case_of(name)
    shape = {**case.shapes["small"], **FEWER.get(name, {})}
    inputs = case.inputs(shape, torch.bfloat16, torch.device("cpu"), torch.Generator().manual_seed(0))
    with kernels("triton"), counting() as traffic:
        case.ours(inputs)
    least = case.minimum(shape, torch.bfloat16)
    assert case.max_launches is not None and case.max_ratio is not None, "an operation without a goal"
    assert traffic.launches <= case.max_launches, traffic.kernels
    assert traffic.bytes <= case.max_ratio * least.bytes, f"{traffic.bytes / least.bytes:.3f} x the minimum"
    if least.flops:
        assert traffic.flops <= 1.01 * least.flops
