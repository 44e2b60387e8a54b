"""fused_linear_cross_entropy: the row kernel in the interpreter and the whole operation, against fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from reca_fast.kernels.fused_linear_cross_entropy.contract import fused_linear_cross_entropy
from reca_fast.kernels.fused_linear_cross_entropy.ragged_matmul import ragged_losses_and_gradients
from reca_fast.kernels.fused_linear_cross_entropy.settings import Needs, Settings
from tests.combinations import sampled
from tests.oracles.cross_entropy import CASES, IGNORED, make, ours, plain, run

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@sampled(2, name=list(CASES), reduction=["mean", "sum", "none"], dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_kernels_against_the_truth(triton_kernels, within_budget, name, reduction, dtype) -> None:
    tensors, labels, settings, chunk = make(name, dtype)
    got = run(ours, tensors, labels, settings, reduction, chunk)
    truth = run(plain, tensors, labels, settings, reduction, 0, torch.float64)
    baseline = run(plain, tensors, labels, settings, reduction, 0)
    for x, exact, rounded in zip(got, truth, baseline, strict=True):
        assert within_budget(x, exact, rounded)


@pytest.mark.parametrize(
    "mutate",
    [torch.zeros_like, torch.neg, lambda x: x * 1.05, lambda x: x * (torch.arange(len(x)) != 3)[:, None]],
    ids=["zeros", "sign flip", "x1.05", "dropped row"],
)
def test_the_budget_rejects_mutants(within_budget, mutate) -> None:
    tensors, labels, settings, chunk = make("plain", torch.bfloat16)
    _, got, _ = run(ours, tensors, labels, settings, "mean", chunk)
    _, truth, _ = run(plain, tensors, labels, settings, "mean", 0, torch.float64)
    _, baseline, _ = run(plain, tensors, labels, settings, "mean", 0)
    assert within_budget(got, truth, baseline)
    assert not within_budget(mutate(got), truth, baseline)


@pytest.mark.parametrize("way", ["reference", "triton"])
def test_extreme_logits_do_not_overflow(request, way) -> None:
    """Logits in the tens of thousands: the softmax is one-hot, nothing overflows."""
    if way == "triton":
        request.getfixturevalue("triton_kernels")
    tensors, labels, settings, chunk = make("plain", torch.float32, scale=1e4)
    got = run(ours, tensors, labels, settings, "none", chunk)
    truth = run(plain, tensors, labels, settings, "none", 0, torch.float64)
    for x, exact in zip(got, truth, strict=True):
        torch.testing.assert_close(x.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("way", ["reference", "triton"])
@pytest.mark.parametrize("high", [1e3, 1e4, 1e5])
def test_small_differences_of_large_logits(request, way, high) -> None:
    """fp32 has 6e-8 of 1e4 left: the loss must be formed from differences of logits, not from their logsumexp."""
    if way == "triton":
        request.getfixturevalue("triton_kernels")
    logits = torch.tensor([[high, high - 6.0]])
    tensors, settings = [torch.eye(1), logits.t(), None, torch.ones(1)], {"smoothing": 0.1, "z": 0.0, "classes": None}
    for how in ("mean", "none"):
        got = run(ours, tensors, torch.tensor([0]), settings, how, 2**28)
        truth = run(plain, tensors, torch.tensor([0]), settings, how, 0, torch.float64)
        for x, exact in zip(got[::2], truth[::2], strict=True):  # the loss and the weight's gradient
            torch.testing.assert_close(x.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.slow
@sampled(2, weight_of_rows=[1e-9, 1.0, 1e5], reduction=["mean", "sum"], way=["reference", "triton"])
def test_fp16_neither_loses_nor_overflows(request, way, weight_of_rows, reduction) -> None:
    """A mean does not depend on the size of the weights, and sums over many rows may be beyond 65504 on the way."""
    if way == "triton":
        request.getfixturevalue("triton_kernels")
    rows = 3000 if way == "reference" else 40
    hidden = torch.full((rows, 16), 60.0 if way == "reference" else 2e3, dtype=torch.float16)
    weight, weights = torch.zeros(8, 16, dtype=torch.float16), torch.full((rows,), weight_of_rows)
    settings = {"smoothing": 0.0, "z": 0.0, "classes": None}
    labels, scale = torch.zeros(rows, dtype=torch.int64), 1.0 if reduction == "mean" else 1 / (rows * weight_of_rows)

    def scaled(function):
        return lambda *args: function(*args) * scale

    for passes in (1, 2):  # formed in the forward pass; formed again
        leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
        loss = scaled(ours)([*leaves, None, weights], labels, settings, reduction, 2**28)
        for _ in range(passes):
            got = torch.autograd.grad(loss, leaves, retain_graph=True)
        exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
        wide = [*exact, None, weights.double()]
        truth = torch.autograd.grad(scaled(plain)(wide, labels, settings, reduction), exact)
        for x, right in zip(got, truth, strict=True):
            torch.testing.assert_close(x.double(), right, rtol=4e-3, atol=1e-6)


@pytest.mark.parametrize("way", ["reference", "triton"])
def test_labels_may_be_views(request, way) -> None:
    if way == "triton":
        request.getfixturevalue("triton_kernels")
    hidden, weight = torch.randn(4, 8), torch.randn(11, 8)
    for labels in (torch.arange(8)[::2], torch.tensor(3).expand(4), torch.arange(16).view(4, 4)[:, 1] % 11):
        want = fused_linear_cross_entropy(hidden, weight, labels.contiguous())
        assert torch.equal(fused_linear_cross_entropy(hidden, weight, labels), want)


@REDUCTIONS
@pytest.mark.parametrize("rows", [0, 3], ids=["no rows", "all ignored"])
def test_without_a_row_that_counts_everything_is_zero(rows, reduction) -> None:
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = fused_linear_cross_entropy(hidden, weight, torch.full((rows,), IGNORED), reduction=reduction)
    for x in (loss, *torch.autograd.grad(loss.sum(), (hidden, weight))):
        assert not x.any()


def test_ignored_rows_are_not_read() -> None:
    tensors, labels, settings, chunk = make("everything, in chunks", torch.float32)
    want = run(ours, tensors, labels, settings, "mean", chunk)
    tensors[0] = torch.where((labels == IGNORED)[:, None], torch.nan, tensors[0])
    for x, y in zip(run(ours, tensors, labels, settings, "mean", chunk), want, strict=True):
        assert torch.equal(x, y)  # also: twice the same bits


@DTYPES
def test_memory_that_nothing_wrote_is_not_read(dtype) -> None:
    """Deterministic torch fills new memory with NaN; bf16 products on a CPU read beyond an odd number of columns."""
    draw = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(24, 256, generator=draw).to(dtype),
        torch.randn(99, 256, generator=draw).to(dtype),
        None,
        None,
    ]
    labels, settings = torch.randint(99, (24,), generator=draw), {"smoothing": 0.0, "z": 0.0, "classes": None}
    want = run(ours, tensors, labels, settings, "mean", 2**28)
    torch.use_deterministic_algorithms(True)
    try:
        got = run(ours, tensors, labels, settings, "mean", 2**28)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@DTYPES
@pytest.mark.parametrize("name", ["plain", "everything, in chunks", "nothing ignored, in chunks"])
def test_products_over_rows_that_only_the_device_counts(triton_kernels, within_budget, name, dtype) -> None:
    """What runs when the labels are on a GPU: the same sums, without the host knowing how many rows count."""
    (hidden, weight, bias, row_weight), labels, settings, _ = make(name, dtype)
    start, stop = settings["classes"] or (0, len(weight))
    valid = labels != IGNORED
    scale = valid.float() if row_weight is None else torch.where(valid, row_weight, 0)
    losses, got = ragged_losses_and_gradients(
        hidden,
        weight[start:stop],
        None if bias is None else bias[start:stop],
        labels,
        valid,
        scale,
        Needs(True, True, bias is not None),
        dtype,
        Settings(start, stop, IGNORED, settings["smoothing"], settings["z"], max_logits_bytes=2**28),
        chunk=5,
    )
    tensors = [hidden, weight, bias, row_weight]
    truth = run_sum(tensors, labels, settings, torch.float64)
    baseline = run_sum(tensors, labels, settings, None)
    assert within_budget(got.hidden_states, truth[0], baseline[0])
    assert within_budget(got.weight, truth[1][start:stop], baseline[1][start:stop])
    if bias is not None:
        assert within_budget(got.bias.to(dtype), truth[2][start:stop], baseline[2][start:stop])
    unweighted = plain(
        [hidden.double(), weight.double(), None if bias is None else bias.double(), None], labels, settings, "none"
    )
    same = plain([hidden, weight, bias, None], labels, settings, "none")
    assert within_budget(losses, unweighted, same)


def run_sum(tensors, labels, settings, dtype) -> tuple[Tensor, ...]:
    """Gradients of the plain formula's sum."""
    leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]
    loss = plain(leaves, labels, settings, "sum")
    return torch.autograd.grad(loss, [x for x in leaves[:3] if x is not None])


@pytest.mark.parametrize("hooked", [False, True], ids=["", "with a hook"])
def test_losses_of_one_weight_add_up(hooked) -> None:
    """In weight.grad, which the first of them becomes; other uses of the weight, and a gradient from before, count."""
    hidden, weight = torch.randn(2, 5, 4), torch.randn(9, 4, requires_grad=True)
    labels = torch.tensor([2, 5, IGNORED, 2, 2])

    def loss() -> Tensor:
        each = [fused_linear_cross_entropy(rows, weight, labels, reduction="sum") for rows in hidden]
        return 3 * each[0] + each[1] + weight.square().sum()

    logits = [F.cross_entropy(rows @ weight.t(), labels, ignore_index=IGNORED, reduction="sum") for rows in hidden]
    (expected,) = torch.autograd.grad(3 * logits[0] + logits[1] + weight.square().sum(), weight)
    torch.testing.assert_close(torch.autograd.grad(loss(), weight)[0], expected)
    assert weight.grad is None
    if hooked:
        weight.register_hook(lambda gradient: gradient * 1)
    for times in (1, 2):
        loss().backward()
        torch.testing.assert_close(weight.grad, times * expected)


def test_several_processes_see_every_gradient_at_autograds_own_node(monkeypatch) -> None:
    """There DistributedDataParallel waits for it."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    hidden, weight, seen = torch.randn(5, 4), torch.randn(9, 4, requires_grad=True), []
    node = get_gradient_edge(weight).node  # which lives as long as somebody holds it
    node.register_prehook(lambda gradients: seen.append(gradients[0]))
    fused_linear_cross_entropy(hidden, weight, torch.tensor([2, 5, IGNORED, 2, 2]), reduction="sum").backward()
    assert len(seen) == 1 and torch.equal(seen[0], weight.grad)


@pytest.mark.parametrize("hooked", [False, True], ids=["", "with a hook"])
def test_gradients_of_a_range_add_up(hooked) -> None:
    """A weight that has a gradient gets the range's rows added in place; autograd.grad still returns a dense one."""
    hidden, weight = torch.randn(5, 4), torch.randn(9, 4, requires_grad=True)
    if hooked:
        weight.register_hook(lambda gradient: gradient * 1)
    labels = torch.tensor([2, 5, IGNORED, 2, 2])

    def loss(reduction: str = "mean") -> Tensor:
        return fused_linear_cross_entropy(hidden, weight, labels, vocab_range=(2, 6), reduction=reduction).sum()

    (once,) = torch.autograd.grad(loss(), weight)
    assert once.shape == weight.shape and not once[:2].any() and not once[6:].any()
    total = loss() + (weight * 2).sum()
    for _ in range(2):
        total.backward(retain_graph=True)
    torch.testing.assert_close(weight.grad, 2 * once + 4)
    held = weight.grad
    torch.testing.assert_close(torch.autograd.grad(loss(), weight)[0], once)
    loss("none").backward()
    assert (weight.grad is held) or hooked
    torch.testing.assert_close(weight.grad, (2 + 4) * once + 4)  # four rows count: their sum is four times the mean
