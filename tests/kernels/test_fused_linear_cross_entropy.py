"""fused_linear_cross_entropy: the row kernel in the interpreter, the whole against fp64, then as torch sees it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reca_fast.kernels.common.implementation import kernels
from reca_fast.kernels.fused_linear_cross_entropy.contract import _loss, _rows, fused_linear_cross_entropy
from reca_fast.kernels.fused_linear_cross_entropy.ragged_matmul import ragged_losses_and_gradients

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
IGNORED = -100


@pytest.fixture
def triton_kernels():
    """Inside a test, the row pass runs its Triton kernel on CPU tensors."""
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")
    with interpreter.interpreting(), kernels("triton"):
        yield


def formula(
    hidden_states, weight, labels, *, bias=None, row_weight=None, smoothing=0.0, z=0.0, classes=None, how="mean"
):
    """The definition, in plain torch and in the dtype of its arguments; losses in fp32 or wider."""
    start, stop = classes or (0, len(weight))
    logits = F.linear(hidden_states, weight[start:stop])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias[start:stop]
    valid = labels != IGNORED
    losses = F.cross_entropy(
        logits, torch.where(valid, labels - start, IGNORED), reduction="none", label_smoothing=smoothing
    )
    losses = losses + torch.where(valid, z * logits.logsumexp(-1).square(), 0)
    factor = valid.to(losses.dtype) if row_weight is None else torch.where(valid, row_weight, 0)
    if how == "none":
        return losses * factor
    return (losses * factor).sum() / (factor.sum() if how == "mean" else 1)


CASES = {  # rows, ignored, dim, vocabulary, classes, smoothing, z, bias and weights, logits bytes per chunk
    "plain": (9, [0, 4, 5], 16, 101, None, 0.0, 0.0, False, 2**28),
    "everything, in chunks": (13, [1, 2, 12], 24, 203, (13, 150), 0.1, 1e-2, True, 2000),
    "one row": (1, [], 8, 64, None, 0.0, 1e-3, False, 1),
    "nothing ignored, in chunks": (6, [], 8, 70, (5, 6 + 63), 0.0, 0.0, True, 600),
    "one class": (3, [1], 8, 5, (2, 3), 0.5, 0.1, False, 2**28),
    "read twice": (3, [0], 16, 8300, None, 0.1, 1e-3, False, 2**28),
    "read twice, with bias": (2, [], 8, 8257, None, 0.0, 0.0, True, 2**28),
}


def make(name: str, dtype: torch.dtype, scale: float = 1.0) -> tuple[list[Tensor | None], Tensor, dict, int]:
    rows, ignored, dim, vocabulary, classes, smoothing, z, more, chunk = CASES[name]
    draw = torch.Generator().manual_seed(len(name))
    start, stop = classes or (0, vocabulary)
    labels = torch.randint(start, stop, (rows,), generator=draw)
    labels[ignored] = IGNORED
    hidden = (scale * torch.randn(dim, rows, generator=draw)).to(dtype).t()  # not contiguous
    weight = torch.randn(vocabulary, dim, generator=draw).to(dtype)
    bias = torch.randn(vocabulary, generator=draw).to(dtype) if more else None
    row_weight = torch.rand(rows, generator=draw) if more else None
    return [hidden, weight, bias, row_weight], labels, {"smoothing": smoothing, "z": z, "classes": classes}, chunk


def ours(tensors, labels, settings, how, chunk=2**28) -> Tensor:
    return fused_linear_cross_entropy(
        tensors[0],
        tensors[1],
        labels,
        bias=tensors[2],
        row_weight=tensors[3],
        label_smoothing=settings["smoothing"],
        z_loss=settings["z"],
        vocab_range=settings["classes"],
        reduction=how,
        max_logits_bytes=chunk,
    )


def plain(tensors, labels, settings, how, chunk=0) -> Tensor:
    return formula(tensors[0], tensors[1], labels, bias=tensors[2], row_weight=tensors[3], how=how, **settings)


def run(function, tensors, labels, settings, how, chunk, dtype=None) -> list[Tensor]:
    """The loss, then the gradients of all tensors for an upstream gradient that is not 1."""
    leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]
    loss = function(leaves, labels, settings, how, chunk)
    upstream = torch.linspace(0.5, 1.5, max(1, loss.numel()), dtype=loss.dtype).view(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, [x for x in leaves if x is not None], upstream)]


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("name", CASES)
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
def test_extreme_logits(request, way) -> None:
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


@pytest.mark.parametrize("way", ["reference", "triton"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight_of_rows", [1e-9, 1.0, 1e5])
def test_fp16_neither_loses_nor_overflows(request, way, weight_of_rows, reduction) -> None:
    """A mean does not depend on the size of the weights, and sums over many rows may be beyond 65504 on the way."""
    if way == "triton":
        request.getfixturevalue("triton_kernels")
    rows = 3000 if way == "reference" else 40
    hidden = torch.full((rows, 16), 60.0 if way == "reference" else 2e3, dtype=torch.float16)
    tensors = [hidden, torch.zeros(8, 16, dtype=torch.float16), None, torch.full((rows,), weight_of_rows)]
    settings = {"smoothing": 0.0, "z": 0.0, "classes": None}
    labels, scale = torch.zeros(rows, dtype=torch.int64), 1.0 if reduction == "mean" else 1 / (rows * weight_of_rows)

    def scaled(function):
        return lambda *args: function(*args) * scale

    for passes in (1, 2):  # formed in the forward pass; formed again
        leaves = [x if x is None else x.detach().requires_grad_() for x in tensors[:3]]
        loss = scaled(ours)([*leaves, tensors[3]], labels, settings, reduction, 2**28)
        for _ in range(passes):
            got = torch.autograd.grad(loss, [leaves[0], leaves[1]], retain_graph=True)
        exact = [x if x is None else x.detach().double().requires_grad_() for x in tensors[:3]]
        truth = torch.autograd.grad(
            scaled(plain)([*exact, tensors[3].double()], labels, settings, reduction), [exact[0], exact[1]]
        )
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


@REDUCTIONS
@pytest.mark.parametrize("name", ["everything, in chunks", "nothing ignored, in chunks"])
def test_gradcheck(name, reduction) -> None:
    tensors, labels, settings, chunk = make(name, torch.float64)
    leaves = [x.double()[: None if i != 0 else len(x)].requires_grad_() for i, x in enumerate(tensors) if x is not None]
    assert torch.autograd.gradcheck(lambda *x: ours(x, labels, settings, reduction, chunk), leaves, fast_mode=True)


def test_a_second_backward_is_right_and_leaves_the_first_alone() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    loss = fused_linear_cross_entropy(hidden, weight, torch.tensor([0, 8, IGNORED, 2, 2]))
    first = torch.autograd.grad(loss * 2, (hidden, weight), retain_graph=True)
    copies = [x.clone() for x in first]
    second = torch.autograd.grad(loss * 3, (hidden, weight))
    for x, copy, y in zip(first, copies, second, strict=True):
        assert torch.equal(x, copy)
        torch.testing.assert_close(y, 1.5 * x)


def test_autocast() -> None:
    hidden, weight = torch.randn(5, 16, requires_grad=True), torch.randn(9, 16, requires_grad=True)
    labels = torch.tensor([0, 8, IGNORED, 2, 2])
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_linear_cross_entropy(hidden, weight, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, fused_linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.dtype == torch.float32
    assert not torch.equal(gradient, gradient.bfloat16().float()), "not rounded to the products' dtype on its way"


class _Largest(TorchDispatchMode):
    """Bytes of the largest storage that anything inside made; a cast is called a view, so storages are compared."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "reca_fast":
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args)
        out = func(*args, **kwargs or {})
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor))
        self.bytes = max([self.bytes, *(x.nbytes() for x in made if x.data_ptr() not in given)])
        return out


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_a_range_never_makes_anything_of_the_weights_size(autocast) -> None:
    """Once weight.grad is there: not the cast of the weight, not its gradient."""
    hidden, weight = torch.randn(5, 16), torch.randn(500, 16, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    with _Largest() as made:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = fused_linear_cross_entropy(hidden, weight, torch.arange(5) + 7, vocab_range=(7, 27))
        loss.backward()
    assert made.bytes <= 64 * 16 * 4
    assert weight.grad[7:27].any() and not weight.grad[27:].any() and not weight.grad[:7].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [None, (2, 9)], ids=["everything", "a range"])
def test_compiles_under_autocast_and_in_fp16(dtype, classes) -> None:
    """What the operation promises fake tensors is what it makes, also where the weight is wider than the products."""
    hidden, weight = torch.randn(5, 4), torch.randn(11, 4)
    labels = torch.tensor([2, 8, IGNORED, 2, 7])
    wides = (torch.float32, torch.float16) if dtype == torch.float16 else (torch.float32, torch.bfloat16)
    for weight_dtype in wides:
        leaves = [hidden.to(weight_dtype).requires_grad_(), weight.to(weight_dtype).requires_grad_()]

        def step(h: Tensor, w: Tensor, ignored: int) -> Tensor:
            with torch.autocast("cpu", dtype, enabled=w.dtype == torch.float32):
                return fused_linear_cross_entropy(h, w, labels, vocab_range=classes, ignore_index=ignored)

        torch._dynamo.reset()
        whole = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
        results = [run(*leaves, IGNORED) for run in (whole, step)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad(x, leaves, torch.tensor(3.0)) for x in results))
        start, stop = classes or (0, 11)
        settings = (start, stop, IGNORED, 0.0, 0.0, 2**20)
        given = (leaves[0].to(dtype), leaves[1], None, labels, None, True, [True, True, False], *settings)
        torch.library.opcheck(_loss, given, test_utils=("test_schema", "test_faketensor"))


@REDUCTIONS
def test_compiles_without_a_break(reduction) -> None:
    tensors, labels, settings, chunk = make("everything, in chunks", torch.float32)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for x, y in zip(
        run(compiled, tensors, labels, settings, reduction, chunk),
        run(ours, tensors, labels, settings, reduction, chunk),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_opcheck() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    labels, settings = torch.tensor([1, 5, IGNORED, 2, 2]), (1, 6, IGNORED, 0.1, 0.1, 2**20)
    torch.library.opcheck(_rows, (hidden, weight, None, labels, *settings))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        _loss, (hidden, weight, None, labels, None, True, [True, True, False], *settings), test_utils=tests
    )


def bad(**changes):
    arguments = {"hidden_states": torch.ones(5, 4), "weight": torch.ones(9, 4), "labels": torch.tensor([0, 8, 1, 2, 2])}
    arguments |= changes
    return lambda: fused_linear_cross_entropy(**arguments)


BAD = {
    "hidden states of a batch": ("hidden_states", bad(hidden_states=torch.ones(1, 5, 4))),
    "integer hidden states": ("hidden_states", bad(hidden_states=torch.ones(5, 4, dtype=torch.int64))),
    "weight of another width": ("weight", bad(weight=torch.ones(9, 3))),
    "weight of another dtype": ("weight", bad(weight=torch.ones(9, 4).bfloat16())),
    "weight elsewhere": ("weight", bad(weight=torch.ones(9, 4, device="meta"))),
    "short labels": ("labels", bad(labels=torch.zeros(4, dtype=torch.int64))),
    "labels of 32 bits": ("labels", bad(labels=torch.zeros(5, dtype=torch.int32))),
    "a label beyond the vocabulary": ("labels", bad(labels=torch.tensor([0, 9, 1, 2, 2]))),
    "a negative label": ("labels", bad(labels=torch.tensor([0, -1, 1, 2, 2]))),
    "a label outside the range": ("labels", bad(vocab_range=(1, 9))),
    "a label outside, none": ("labels", bad(vocab_range=(1, 9), reduction="none")),
    "bias of another size": ("bias", bad(bias=torch.ones(8))),
    "integer bias": ("bias", bad(bias=torch.ones(9, dtype=torch.int64))),
    "short weights": ("row_weight", bad(row_weight=torch.ones(4))),
    "a range outside the weight": ("vocab_range", bad(vocab_range=(0, 10))),
    "an empty range": ("vocab_range", bad(vocab_range=(3, 3))),
    "half a range": ("vocab_range", bad(vocab_range=(3,))),
    "a range of fractions": ("vocab_range", bad(vocab_range=(0.0, 9.0))),
    "too smooth": ("label_smoothing", bad(label_smoothing=1.5)),
    "negative z-loss": ("z_loss", bad(z_loss=-1.0)),
    "unknown reduction": ("reduction", bad(reduction="total")),
    "no room": ("max_logits_bytes", bad(max_logits_bytes=0)),
    "endless room": ("max_logits_bytes", bad(max_logits_bytes=float("inf"))),
    "a slice for a range": ("vocab_range", bad(vocab_range=slice(0, 9))),
    "a number for a range": ("vocab_range", bad(vocab_range=9)),
    "no smoothing": ("label_smoothing", bad(label_smoothing=None)),
    "an endless z-loss": ("z_loss", bad(z_loss=float("inf"))),
    "nothing to ignore": ("ignore_index", bad(ignore_index=None)),
    "too much to ignore": ("ignore_index", bad(ignore_index=2**70)),
    "no labels": ("labels", bad(labels=None)),
    "hidden states of 8 bits": ("hidden_states", bad(hidden_states=torch.ones(5, 4).to(torch.float8_e4m3fn))),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case: str) -> None:
    name, call = BAD[case]
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()


@DTYPES
@pytest.mark.parametrize("name", ["plain", "everything, in chunks", "nothing ignored, in chunks"])
def test_products_over_rows_that_only_the_device_counts(triton_kernels, within_budget, name, dtype) -> None:
    """What runs when the labels are on a GPU: the same sums, without the host knowing how many rows count."""
    (hidden, weight, bias, row_weight), labels, settings, _ = make(name, dtype)
    start, stop = settings["classes"] or (0, len(weight))
    valid = labels != IGNORED
    scale = valid.float() if row_weight is None else torch.where(valid, row_weight, 0)
    got = ragged_losses_and_gradients(
        hidden,
        weight[start:stop],
        None if bias is None else bias[start:stop],
        labels,
        valid,
        scale,
        (True, True, bias is not None),
        dtype,
        start,
        settings["smoothing"],
        settings["z"],
        5,
    )
    tensors = [hidden, weight, bias, row_weight]
    truth = run_sum(tensors, labels, settings, torch.float64)
    baseline = run_sum(tensors, labels, settings, None)
    assert within_budget(got[1], truth[0], baseline[0])
    assert within_budget(got[2], truth[1][start:stop], baseline[1][start:stop])
    if bias is not None:
        assert within_budget(got[3].to(dtype), truth[2][start:stop], baseline[2][start:stop])
    unweighted = plain(
        [hidden.double(), weight.double(), None if bias is None else bias.double(), None], labels, settings, "none"
    )
    same = plain([hidden, weight, bias, None], labels, settings, "none")
    assert within_budget(got[0], unweighted, same)


def run_sum(tensors, labels, settings, dtype) -> tuple[Tensor, ...]:
    """Gradients of the plain formula's sum."""
    leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]
    loss = plain(leaves, labels, settings, "sum")
    return torch.autograd.grad(loss, [x for x in leaves[:3] if x is not None])


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
