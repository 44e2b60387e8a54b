"""adaln_modulate, gated_residual and mar_residual_block: kernels in the interpreter, and the operations as torch sees
them (autograd, autocast, compile, errors).
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reca_fast.kernels import adaln_modulate, gated_residual, mar_residual_block
from reca_fast.kernels.common.implementation import kernels
from tests.combinations import sampled

pytestmark = pytest.mark.usefixtures("one_thread")


def modulate_formula(x, shift, scale, weight=None, bias=None):
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-6) * (1 + scale) + shift


def modulate(x, shift, scale, weight=None, bias=None):
    return adaln_modulate(x, shift, scale, weight=weight, bias=bias)


def gate_formula(a, gate, update):
    return a + gate * update


def block_formula(a, modulation, ln_weight, ln_bias, w1, b1, w2, b2):
    shift, scale, gate = modulation.chunk(3, dim=-1)
    h = modulate_formula(a, shift, scale, ln_weight, ln_bias)
    return a + gate * F.linear(F.silu(F.linear(h, w1, b1)), w2, b2)


def normal(draw, *size, scale=1.0) -> Tensor:
    return torch.randn(*size, generator=draw) * scale


def modulate_arguments(rows, width, affine=True, seed=0) -> list[Tensor]:
    """shift and scale are columns of one projection, as in the denoiser."""
    draw = torch.Generator().manual_seed(seed)
    shift, scale, _ = normal(draw, rows, 3 * width).chunk(3, dim=1)
    return [normal(draw, rows, width), shift, scale, *(normal(draw, width) for _ in range(2 * affine))]


def gate_arguments(rows, width, seed=0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [normal(draw, rows, width), normal(draw, rows, 3 * width).chunk(3, dim=1)[2], normal(draw, rows, width)]


def block_arguments(rows, width, seed=0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    matrix, vector = partial(normal, draw, width, width, scale=width**-0.5), partial(normal, draw, width)
    first = [normal(draw, rows, width), normal(draw, rows, 3 * width), vector(), vector()]
    return [*first, matrix(), vector(), matrix(), vector()]


OPERATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., list[Tensor]]]] = {
    "modulate": (modulate, modulate_formula, modulate_arguments),
    "modulate without weights": (modulate, modulate_formula, partial(modulate_arguments, affine=False)),
    "gate": (gated_residual, gate_formula, gate_arguments),
    "block": (mar_residual_block, block_formula, block_arguments),
}
operations = pytest.mark.parametrize("name", OPERATIONS)


def in_dtype(arguments: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Leaves with the strides of `arguments`."""
    return [x.detach().to(dtype).requires_grad_() for x in arguments]


def results(run, arguments: list[Tensor]) -> list[Tensor]:
    """The output, then the gradient of every argument."""
    out = run(*arguments)
    upstream = normal(torch.Generator().manual_seed(9), *out.shape).bfloat16().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, arguments, upstream)]


@pytest.fixture
def triton_results():
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")

    def run(operation, arguments: list[Tensor]) -> list[Tensor]:
        with interpreter.interpreting(), kernels("triton"):
            return results(operation, arguments)

    return run


@pytest.mark.slow
@sampled(
    2,
    shape={"ragged": (35, 48), "one row": (1, 1536), "narrow": (70, 8)},
    dtype=[torch.float32, torch.bfloat16, torch.float16],
    name=list(OPERATIONS),
)
def test_kernels_are_within_their_budget(name, shape, dtype, triton_results, within_budget) -> None:
    operation, formula, make = OPERATIONS[name]
    args = in_dtype(make(*shape), dtype)
    truth, baseline = results(formula, in_dtype(args, torch.float64)), results(formula, args)
    for number, three in enumerate(zip(triton_results(operation, args), truth, baseline, strict=True)):
        assert within_budget(*three), number


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_extreme_rows_keep_their_digits(scale, triton_results, within_budget) -> None:
    """Small rows meet eps; a mean far from zero must not cost the variance its digits."""
    x, *rest = modulate_arguments(4, 32)
    args = in_dtype([x * scale + 100 * scale, *rest], torch.float32)
    truth, baseline = results(modulate_formula, in_dtype(args, torch.float64)), results(modulate_formula, args)
    for number, three in enumerate(zip(triton_results(modulate, args), truth, baseline, strict=True)):
        assert within_budget(*three), number


@operations
def test_without_rows_gradients_are_zero(name, triton_results) -> None:
    operation, _, make = OPERATIONS[name]
    out, *grads = triton_results(operation, in_dtype(make(0, 16), torch.float32))
    assert out.shape == (0, 16) and not any(x.any() for x in grads)


@pytest.mark.slow
@operations
def test_same_bits_twice_and_from_views(name, triton_results) -> None:
    operation, _, make = OPERATIONS[name]
    args = make(40, 16)
    turned = [x.t().contiguous().t() if x.dim() == 2 else torch.stack((x, x), 1)[:, 0] for x in args]
    first, again, views = (triton_results(operation, in_dtype(x, torch.float32)) for x in (args, args, turned))
    for one, two, three in zip(first, again, views, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, three)


def test_leading_dimensions_may_be_many() -> None:
    args = [x.unflatten(0, (2, 3)) if x.dim() == 2 else x for x in modulate_arguments(6, 8)]
    torch.testing.assert_close(modulate(*args), modulate_formula(*args))


def drop_largest_row(x: Tensor) -> Tensor:
    rows = x.clone()
    rows[rows.reshape(len(x), -1).norm(dim=1).argmax()] = 0
    return rows


MUTANTS = {
    "zeros": torch.zeros_like,
    "sign flip": torch.neg,
    "5 % too large": lambda x: x * 1.05,
    "a dropped row": drop_largest_row,
}


@operations
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_budget_rejects_mutants(name, mutant, within_budget) -> None:
    _, formula, make = OPERATIONS[name]
    args = in_dtype(make(9, 16), torch.bfloat16)
    truth, baseline = results(formula, in_dtype(args, torch.float64)), results(formula, args)
    for number, (right, base) in enumerate(zip(truth, baseline, strict=True)):
        assert not within_budget(mutant(right).to(base.dtype), right, base), number


@operations
def test_gradients_are_the_numerical_ones(name) -> None:
    operation, _, make = OPERATIONS[name]
    assert torch.autograd.gradcheck(operation, in_dtype(make(3, 4), torch.float64))


def test_only_what_needs_a_gradient(triton_results) -> None:
    """With the block's own weights frozen the gradients of its inputs are the same."""
    args = in_dtype(block_arguments(5, 16), torch.float32)
    everything = triton_results(mar_residual_block, args)
    frozen = triton_results(lambda *x: mar_residual_block(*x, *(y.detach() for y in args[2:])), args[:2])
    for got, expected in zip(frozen, everything[:3], strict=True):
        assert torch.equal(got, expected)


def test_autocast_decides_the_dtype_of_products_alone() -> None:
    """Products in autocast's dtype, the residual stream in its own."""
    args = in_dtype(block_arguments(5, 16), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(mar_residual_block, args)
    for x, y in zip(got, results(block_formula, args), strict=True):
        assert x.dtype == torch.float32 and (x - y).norm() < 0.02 * y.norm()


@pytest.mark.slow
def test_as_torch_sees_it() -> None:
    args = in_dtype(block_arguments(3, 8), torch.float32)
    torch.library.opcheck(torch.ops.reca_fast.mar_residual_block.default, (*args, 1e-6))
    torch.library.opcheck(
        torch.ops.reca_fast.gated_residual.default, tuple(in_dtype(gate_arguments(3, 8), torch.float32))
    )
    args = in_dtype(modulate_arguments(3, 8), torch.float32)
    torch.library.opcheck(torch.ops.reca_fast.adaln_modulate.default, (*args, 1e-6))


@operations
def test_it_compiles_without_a_break(name) -> None:
    operation, _, make = OPERATIONS[name]
    args = in_dtype(make(3, 8), torch.bfloat16)
    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager")
    for got, expected in zip(results(compiled, args), results(operation, args), strict=True):
        assert torch.equal(got, expected)


BLOCK = ("hidden_states", "modulation", "ln_weight", "ln_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")


@pytest.mark.parametrize("bad", BLOCK)
def test_block_errors_name_the_argument(bad) -> None:
    good = dict(zip(BLOCK, block_arguments(3, 8), strict=True))
    for wrong in (torch.zeros(5, 7, 2), good[bad].to("meta") if bad != "hidden_states" else good[bad].int()):
        with pytest.raises(ValueError, match=rf"^{bad}: expected "):
            mar_residual_block(**good | {bad: wrong})


@pytest.mark.parametrize("bad", ["shift", "scale", "weight", "bias"])
def test_modulate_errors_name_the_argument(bad) -> None:
    good = dict(zip(("hidden_states", "shift", "scale", "weight", "bias"), modulate_arguments(3, 8), strict=True))
    for wrong in (torch.zeros(3), good[bad].to("meta"), good[bad].int()):
        with pytest.raises(ValueError, match=rf"^{bad}: expected "):
            adaln_modulate(**good | {bad: wrong})
