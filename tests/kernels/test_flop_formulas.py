"""torch's FLOP counter sees the matrix products inside our operations: as many as the plain sequence has."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from reca_fast import kernels
from reca_fast.kernels import Varlen, costs

ROWS, DIM, CLASSES = 12, 16, 40


def counted(step: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        step().sum().backward()
    return counter.get_total_flops()


def cross_entropy(reduction="mean", trained=(True, True), **options) -> Tensor:
    hidden_states, weight = (
        torch.randn(n, DIM, requires_grad=wanted) for n, wanted in zip((ROWS, CLASSES), trained, strict=True)
    )
    labels = torch.full((ROWS,), 30)
    return kernels.fused_linear_cross_entropy(hidden_states, weight, labels, reduction=reduction, **options)


@pytest.mark.parametrize("where", ["real", "fake"])
def test_flops_of_cross_entropy_are_counted(where: str) -> None:
    def step() -> Tensor:
        if where == "real":
            return cross_entropy()
        with FakeTensorMode():
            return cross_entropy()

    assert counted(step) == costs.fused_linear_cross_entropy(rows=ROWS, hidden_size=DIM, classes=CLASSES).flops


@pytest.mark.parametrize(
    ("options", "products"),
    [
        ({"reduction": "none"}, 4),  # the logits twice
        ({"trained": (True, False)}, 2),
        ({"trained": (False, True)}, 2),
        ({"vocab_range": (20, 40)}, 1.5),
    ],
    ids=str,
)
def test_cross_entropy_does_what_is_asked(options: dict, products: float) -> None:
    assert counted(lambda: cross_entropy(**options)) == products * 2 * ROWS * DIM * CLASSES


def test_flops_of_a_residual_block_are_counted() -> None:
    def step() -> Tensor:
        width, vectors = 8, [torch.randn(8, requires_grad=True) for _ in range(4)]
        hidden_states, modulation = torch.randn(ROWS, width, requires_grad=True), torch.randn(ROWS, 3 * width)
        first, second = (torch.randn(width, width, requires_grad=True) for _ in range(2))
        return kernels.mar_residual_block(
            hidden_states, modulation, *vectors[:2], first, vectors[2], second, vectors[3]
        )

    assert counted(step) == costs.mar_residual_block(rows=ROWS, width=8).flops


def test_flops_of_a_patch_embedding_are_counted() -> None:
    images = [torch.zeros(9, 9, 3, dtype=torch.uint8)]
    weight, bias, table = (torch.randn(*shape, requires_grad=True) for shape in ((5, 12), (5,), (4, 5)))

    def step() -> Tensor:
        return kernels.blur_patch_embed(
            images, weight, bias, table, torch.arange(4), size=(4, 4), patch_size=2, mean=0.5, std=0.5
        )

    cost = costs.blur_patch_embed(pixels=81, patches=4, patch_size=2, width=5, positions=4)
    assert counted(step) == cost.flops


@pytest.mark.parametrize("causal", [False, True])
def test_flops_of_attention_are_counted(causal: bool) -> None:
    """As much as torch's own formula says of each segment, and under the causal rule what remains of it."""
    lengths = [5, 3]
    q, k, v = (torch.randn(sum(lengths), heads, 8, requires_grad=True) for heads in (4, 2, 2))
    segments = Varlen.from_lengths(lengths, lengths, causal=causal)

    def torch_says(n: int) -> int:
        shape = (1, 4, n, 8)
        return sdpa_flop_count(shape, shape, shape) + sdpa_backward_flop_count(shape, shape, shape, shape)

    share = [((n + 1) / (2 * n) if causal else 1) for n in lengths]
    expected = sum(torch_says(n) * part for n, part in zip(lengths, share, strict=True))
    assert counted(lambda: kernels.varlen_attention(q, k, v, segments, backend="sdpa")) == expected
