"""What all losses have in common: how rows are weighted and reduced, and what they say of impossible arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from reca_fast.kernels import flow_matching_loss, fused_linear_cross_entropy, mar_diffusion_loss
from reca_fast.kernels.common.implementation import kernels
from tests.combinations import sampled

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
Loss = Callable[..., Tensor]
"""loss(moving [rows, 8], row_weight=, reduction=), the rest of its arguments fixed."""


def flow(prediction: Tensor, **options: Any) -> Tensor:
    rows = len(prediction)
    return flow_matching_loss(prediction, torch.ones(rows, 8), torch.full((rows,), 0.5), seed=1, **options)


def mar(prediction: Tensor, **options: Any) -> Tensor:
    rows = len(prediction)
    timesteps = torch.arange(rows) * 100
    return mar_diffusion_loss(prediction, torch.ones(rows, 4), timesteps, seed=1, **options)


def cross_entropy(hidden_states: Tensor, **options: Any) -> Tensor:
    rows = len(hidden_states)
    weight = torch.linspace(-1, 1, 11 * 8).view(11, 8).to(hidden_states.dtype)
    return fused_linear_cross_entropy(hidden_states, weight, torch.arange(rows) % 11, **options)


LOSSES = pytest.mark.parametrize("loss", [flow, mar, cross_entropy], ids=lambda f: f.__name__)


@pytest.fixture(params=["reference", "triton"], autouse=True)
def way(request: pytest.FixtureRequest):
    """Every test here runs on plain torch and on the interpreted kernels."""
    if request.param == "reference":
        yield
        return
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")
    with interpreter.interpreting(), kernels("triton"):
        yield


def moving(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows)).to(dtype).requires_grad_()


@LOSSES
@pytest.mark.parametrize("rows", [0, 5])
def test_the_mean_of_nothing_is_zero_and_so_are_its_gradients(loss: Loss, rows) -> None:
    x = moving(rows)
    cancelling = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0])
    for weight in (torch.zeros(rows), None if rows == 0 else cancelling):
        out = loss(x, row_weight=weight)
        (gradient,) = torch.autograd.grad(out, x)
        assert out == 0 and gradient.shape == x.shape and not gradient.any()


@LOSSES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_are_those_of_the_rows(loss: Loss, reduction) -> None:
    x, weight = moving(6), torch.tensor([0.5, 0.0, 2.0, 1.0, 0.25, 3.0])
    rows = loss(x, reduction="none")
    expected = {"none": rows * weight, "sum": (rows * weight).sum(), "mean": (rows * weight).sum() / weight.sum()}
    got = loss(x, row_weight=weight, reduction=reduction)
    torch.testing.assert_close(got, expected[reduction])
    gradients = (torch.autograd.grad(out.sum() * 3, x)[0] for out in (got, expected[reduction]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("loss", [flow, mar], ids=lambda f: f.__name__)  # cross-entropy leaves out by ignore_index
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_of_weight_zero_may_hold_anything(loss: Loss, reduction) -> None:
    clean, weight = moving(4), torch.tensor([1.0, 0.0, 2.0, 0.0])
    spoilt = clean.detach().index_fill(0, torch.tensor([1]), torch.nan).requires_grad_()
    losses = [loss(x, row_weight=weight, reduction=reduction) for x in (clean, spoilt)]
    torch.testing.assert_close(*losses)
    gradients = (torch.autograd.grad(out.sum(), x)[0] for out, x in zip(losses, (clean, spoilt), strict=True))
    torch.testing.assert_close(*gradients)


@sampled(
    2,
    dtype=[torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool],
    reduction=["mean", "sum", "none"],
    loss={loss.__name__: loss for loss in (flow, mar, cross_entropy)},
)
def test_weights_of_any_dtype_on_every_backward_pass(loss: Loss, dtype, reduction) -> None:
    """The first pass takes gradients from the forward pass, later ones form them again; upstream is a loss scale."""
    x, weight = moving(7), (torch.arange(7) % 3).to(dtype)
    got, want = (loss(x, row_weight=w, reduction=reduction).sum() for w in (weight, weight.float()))
    upstream = torch.tensor(65536.0)
    truth = torch.autograd.grad(want, x, upstream)[0]
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(got, x, upstream, retain_graph=True)[0], truth)


@LOSSES
@pytest.mark.parametrize(
    "wrong",
    [torch.ones(3), torch.ones(5, 1), torch.ones(5, dtype=torch.complex64), torch.ones(5, device="meta"), [1.0] * 5],
    ids=["short", "a column", "complex", "elsewhere", "a list"],
)
def test_wrong_weights_are_named(loss: Loss, wrong) -> None:
    with pytest.raises(ValueError, match=r"^row_weight: expected "):
        loss(moving(5), row_weight=wrong)


@LOSSES
def test_a_second_derivative_is_right_or_refused(loss: Loss) -> None:
    """Never silently absent."""
    x = moving(5)
    for reduction in ("mean", "none"):
        out = loss(x, reduction=reduction).sum()
        if loss is flow:
            above = torch.zeros_like(out, requires_grad=True)  # 0: the derivative by it is there all the same
            (gradient,) = torch.autograd.grad(out, x, above, create_graph=True)
            plain = torch.autograd.grad(out, x, retain_graph=True)[0]
            torch.testing.assert_close(torch.autograd.grad(gradient.sum(), above)[0], plain.sum())
        else:
            with pytest.raises(RuntimeError, match=r"has no second derivative \(create_graph=True\)$"):
                torch.autograd.grad(out, x, create_graph=True)
