"""fused_linear_cross_entropy as the rest of torch meets it: autograd, autocast, torch.compile, wrong arguments."""

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reca_fast.kernels.fused_linear_cross_entropy.contract import _loss, _rows, fused_linear_cross_entropy
from tests.combinations import sampled
from tests.oracles.cross_entropy import IGNORED, make, ours, run

pytestmark = pytest.mark.usefixtures("one_thread")

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@REDUCTIONS
@pytest.mark.parametrize("name", ["everything, in chunks", "nothing ignored, in chunks"])
def test_gradients_are_the_numerical_ones(name, reduction) -> None:
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


def test_autocast_decides_the_dtype_of_products_alone() -> None:
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


@pytest.mark.slow
@sampled(1, classes={"everything": None, "a range": (2, 9)}, dtype=[torch.float16, torch.bfloat16])
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
        results = [compute(leaves[0], leaves[1], IGNORED) for compute in (whole, step)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad(x, leaves, torch.tensor(3.0)) for x in results))
        start, stop = classes or (0, 11)
        settings = (start, stop, IGNORED, 0.0, 0.0, 2**20)
        given = (leaves[0].to(dtype), leaves[1], None, labels, None, True, [True, True, False], *settings)
        torch.library.opcheck(_loss, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
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


def test_it_is_registered_as_torch_wants_it() -> None:
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
