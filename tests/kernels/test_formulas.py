"""Every operation against its formula: gradients in fp64, values within what the dtype can do, mistakes outside it."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reca_fast.kernels import flow_interpolate, flow_matching_loss, qk_norm_rope, rms_norm, swiglu

pytestmark = pytest.mark.usefixtures("one_thread")


# The formulas, as Qwen2 and RECA's equation 3 write them; statistics, rotation and errors in fp32 or wider


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (wide(x) * (wide(x).square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    u, v = wide(x).chunk(2, dim=-1)
    c, s = (table.unsqueeze(1).chunk(2, dim=-1)[0] for table in (cos, sin))
    return torch.cat((u * c - v * s, v * c + u * s), dim=-1).to(x.dtype)


def plain_qk_norm_rope(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor):
    return tuple(plain_rotation(plain_rms_norm(x, w), cos, sin) for x, w in ((q, q_weight), (k, k_weight)))


def plain_interpolation(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    t = timesteps[:, None]
    return latents * (1 - t) + noise * t


def plain_loss(prediction: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    return (wide(prediction) - (wide(noise) - wide(latents))).pow(2).sum(-1) / latents.shape[-1]


class Op(NamedTuple):
    """An operation and its formula on the same arguments: first those with a gradient, then those without."""

    run: Callable
    formula: Callable
    shapes: dict[str, list[tuple[int, ...]]]  # id -> shapes of the arguments with a gradient
    constants: Callable[..., list[Tensor]] = lambda first, draw: []


def angles(first: Tensor, draw: torch.Generator) -> list[Tensor]:
    """cos and sin [T, D] with equal halves, never narrower than fp32."""
    half = torch.rand(first.shape[0], first.shape[-1] // 2, generator=draw, dtype=torch.float64) * 6
    full = wide(torch.cat((half, half), dim=-1).to(first.dtype))
    return [full.cos(), full.sin()]


def times(first: Tensor, draw: torch.Generator) -> list[Tensor]:
    return [torch.rand(len(first), generator=draw, dtype=torch.float64).to(first.dtype)]


OPS = {
    "rms_norm": Op(
        rms_norm,
        plain_rms_norm,
        {"rows": [(7, 24), (24,)], "heads": [(2, 3, 40), (40,)], "one": [(1, 8), (8,)], "1-D": [(8,), (8,)]},
    ),
    "swiglu": Op(
        swiglu,
        lambda gate, up: F.silu(gate) * up,
        {"rows": [(9, 40), (9, 40)], "odd": [(3, 5, 7), (3, 5, 7)]},
    ),
    "qk_norm_rope": Op(
        qk_norm_rope,
        plain_qk_norm_rope,
        {
            "gqa2": [(9, 4, 8), (9, 2, 8), (8,), (8,)],
            "gqa7": [(3, 7, 16), (3, 1, 16), (16,), (16,)],
            "mha": [(2, 3, 12), (2, 3, 12), (12,), (12,)],
        },
        angles,
    ),
    "flow_interpolate": Op(
        lambda latents, noise, t: flow_interpolate(latents, t, noise=noise),
        plain_interpolation,
        {"rows": [(11, 16), (11, 16)]},
        times,
    ),
    "flow_matching_loss": Op(
        lambda prediction, latents, noise, t: flow_matching_loss(prediction, latents, t, noise=noise, reduction="none"),
        plain_loss,
        {"rows": [(11, 16), (11, 16), (11, 16)], "wide": [(3, 64), (3, 64), (3, 64)]},
        times,
    ),
}
SHAPES = [pytest.param(OPS[name], shapes, id=f"{name}-{of}") for name in OPS for of, shapes in OPS[name].shapes.items()]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def arguments(op: Op, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(len(shapes))
    # Weights ([D]) around 1, everything else around 0.
    moving = [
        torch.randn(s, generator=draw, dtype=torch.float64) * (1.0 if len(s) > 1 else 0.3) + (len(s) == 1)
        for s in shapes
    ]
    moving = [x.to(dtype).requires_grad_() for x in moving]
    return moving, op.constants(moving[0].detach(), draw)


def outputs_and_gradients(run: Callable, moving: list[Tensor], constants: list[Tensor]) -> list[Tensor]:
    """Everything that the operation returns, then the gradient of every argument that has one."""
    out = run(*moving, *constants)
    out = out if isinstance(out, tuple) else (out,)
    draw = torch.Generator().manual_seed(7)
    upstream = [torch.randn(x.shape, generator=draw, dtype=torch.float64).to(torch.bfloat16).to(x.dtype) for x in out]
    return [*(x.detach() for x in out), *torch.autograd.grad(out, moving, upstream)]


def truth_and_baseline(op: Op, moving: list[Tensor], constants: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    exact = [x.detach().double().requires_grad_() for x in moving], [x.double() for x in constants]
    return outputs_and_gradients(op.formula, *exact), outputs_and_gradients(op.formula, moving, constants)


@pytest.mark.parametrize(("op", "shapes"), SHAPES)
def test_gradients_are_the_numerical_ones(op: Op, shapes) -> None:
    moving, constants = arguments(op, shapes, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: op.run(*x, *constants), moving)


@DTYPES
@pytest.mark.parametrize(("op", "shapes"), SHAPES)
def test_values_are_within_their_budget(op: Op, shapes, dtype, within_budget) -> None:
    moving, constants = arguments(op, shapes, dtype)
    got = outputs_and_gradients(op.run, moving, constants)
    truth, baseline = truth_and_baseline(op, moving, constants)
    for number, three in enumerate(zip(got, truth, baseline, strict=True)):
        assert within_budget(*three), f"result {number}: outputs first, then gradients"


def drop_largest_row(x: Tensor) -> Tensor:
    rows = x.clone()
    rows[rows.flatten(1).norm(dim=1).argmax() if x.dim() > 1 else rows.abs().argmax()] = 0
    return rows


MUTANTS = {
    "zeros": torch.zeros_like,
    "sign flip": torch.neg,
    "5 % too large": lambda x: x * 1.05,
    "a dropped row": drop_largest_row,
}


@DTYPES
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
@pytest.mark.parametrize(("op", "shapes"), SHAPES)
def test_budget_rejects_mutants(op: Op, shapes, mutant, dtype, within_budget) -> None:
    """A tolerance that lets these through would prove nothing."""
    truth, baseline = truth_and_baseline(op, *arguments(op, shapes, dtype))
    for right, base in zip(truth, baseline, strict=True):
        assert not within_budget(mutant(right).to(base.dtype), right, base)


# The rounding rule: the normalised value is rounded to bf16 BEFORE it meets the weight


def exact_rows() -> tuple[Tensor, Tensor]:
    """bf16 [8, 64] with a mean square of exactly 25 x 4^n, so that nothing but the rule decides; weights [64]."""
    row = torch.tensor([1.0, 7.0, -5.0, 5.0]).repeat(16)
    return (row * 2.0 ** torch.arange(-4, 4)[:, None]).bfloat16(), torch.linspace(0.5, 1.5, 64).bfloat16()


@pytest.mark.parametrize("name", ["rms_norm", "qk_norm_rope"])
def test_bf16_rounds_before_the_weight(name: str) -> None:
    x, weight = exact_rows()
    normalised = x.float() / x.float().square().mean(-1, keepdim=True).sqrt()
    before, after = normalised.bfloat16() * weight, (normalised * weight.float()).bfloat16()
    assert not torch.equal(before, after), "the two rules must differ on these rows"
    if name == "rms_norm":
        got = rms_norm(x, weight, eps=0.0)
    else:
        heads, still = x[:, None], torch.zeros(len(x), 64)
        got, same = (y[:, 0] for y in qk_norm_rope(heads, heads, weight, weight, still + 1, still, eps=0.0))
        assert torch.equal(got, same)
    assert torch.equal(got, before)


# Flow matching: reductions and weights


@DTYPES
def test_reductions_of_the_loss_are_formed_in_fp32(dtype) -> None:
    """The error is formed in fp32 whatever the inputs are; "mean" divides by the weights, not by the rows."""
    draw = torch.Generator().manual_seed(0)
    prediction, latents, noise = (torch.randn(6, 8, generator=draw).to(dtype) for _ in range(3))
    t, weight = torch.rand(6, generator=draw), torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])

    def loss(**kwargs) -> Tensor:
        return flow_matching_loss(prediction, latents, t, noise=noise, **kwargs)

    rows = plain_loss(*(x.double() for x in (prediction, latents, noise, t)))
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.mean()}
    weighted = {"none": rows * weight, "sum": (rows * weight).sum(), "mean": (rows * weight).sum() / weight.sum()}
    for reduction in expected:
        torch.testing.assert_close(loss(reduction=reduction), expected[reduction].float())
        torch.testing.assert_close(loss(reduction=reduction, row_weight=weight), weighted[reduction].float())
    assert torch.equal(loss(), loss(reduction="mean"))


def test_ends_of_the_path_are_data_and_noise() -> None:
    """t = 0 is the data, t = 1 the noise, exactly."""
    latents, noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flow_interpolate(latents, torch.zeros(5), noise=noise), latents)
    assert torch.equal(flow_interpolate(latents, torch.ones(5), noise=noise), noise)


# Bad arguments


def qk_case(name: str, shape: tuple[int, ...]) -> Callable:
    shapes = {"q": (5, 4, 8), "k": (5, 2, 8), "q_weight": (8,), "k_weight": (8,), "cos": (5, 8), "sin": (5, 8)}
    return lambda: qk_norm_rope(*(torch.ones(s) for s in (shapes | {name: shape}).values()))


def loss_case(name: str, shape: tuple[int, ...]) -> Callable:
    shapes = {"prediction": (5, 8), "latents": (5, 8), "timesteps": (5,), "noise": (5, 8), "row_weight": (5,)}
    return lambda: flow_matching_loss(**{key: torch.ones(s) for key, s in (shapes | {name: shape}).items()})


BAD = {
    "weight": lambda: rms_norm(torch.ones(5, 8), torch.ones(4)),
    "weight.": lambda: rms_norm(torch.ones(5, 8), torch.ones(8, dtype=torch.int64)),
    "hidden_states": lambda: rms_norm(torch.ones(5, 8, dtype=torch.int32), torch.ones(8)),
    "hidden_states.": lambda: rms_norm(torch.ones(()), torch.ones(())),
    "hidden_states..": lambda: rms_norm(torch.ones(5, 0), torch.ones(0)),
    "eps": lambda: rms_norm(torch.ones(5, 8), torch.ones(8), eps=-1e-6),
    "eps.": lambda: qk_norm_rope(
        *(torch.ones(2, 1, 8),) * 2, *(torch.ones(8),) * 2, *(torch.ones(2, 8),) * 2, eps=-1.0
    ),
    "up": lambda: swiglu(torch.ones(5, 8), torch.ones(5, 4)),
    "up.": lambda: swiglu(torch.ones(5, 8), torch.ones(5, 8).bfloat16()),
    "gate": lambda: swiglu(torch.ones(5, 8, dtype=torch.int64), torch.ones(5, 8)),
    "gate.": lambda: swiglu([1.0], torch.ones(1)),
    "k": qk_case("k", (4, 2, 8)),
    "q_weight": qk_case("q_weight", (1,)),
    "k_weight": qk_case("k_weight", (4,)),
    "cos": qk_case("cos", (5, 4)),
    "sin": qk_case("sin", (1, 8)),
    "latents": loss_case("latents", (5,)),
    "timesteps": loss_case("timesteps", (1,)),
    "noise": loss_case("noise", (1, 8)),
    "prediction": loss_case("prediction", (5, 1)),
    "row_weight": loss_case("row_weight", (5, 1)),
    "reduction": lambda: flow_matching_loss(
        torch.ones(5, 8), torch.ones(5, 8), torch.ones(5), noise=torch.ones(5, 8), reduction="total"
    ),
}


@pytest.mark.parametrize("argument", BAD)
def test_errors_name_the_argument(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument.rstrip('.')}\b"):
        BAD[argument]()


# Compiling


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("name", OPS)
def test_it_compiles_without_a_break(name: str, dtype) -> None:
    """Every gradient, and none is zero where eager's is not: torch.compile on torch 2.11 gave zeros, without an error,
    for an autograd.Function whose last operation was in place or a cast that changed nothing.
    """
    op = OPS[name]
    torch._dynamo.reset()
    compiled = torch.compile(op.run, fullgraph=True, backend="aot_eager")
    given = arguments(op, next(iter(op.shapes.values())), dtype)
    for ours, eager in zip(outputs_and_gradients(compiled, *given), outputs_and_gradients(op.run, *given), strict=True):
        torch.testing.assert_close(ours, eager)
        assert ours.any()


def test_swiglu_writes_its_gradients_over_the_inputs_that_it_is_given_up() -> None:
    inputs = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    kept, given_up = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    swiglu(*kept).sin().sum().backward()
    gate, up = (x * 1 for x in given_up)
    memory = {x.data_ptr() for x in (gate, up)}
    gradients = torch.autograd.grad(swiglu(gate, up, reuse_inputs=True).sin().sum(), (gate, up))
    assert {gradient.data_ptr() for gradient in gradients} == memory
    for parameter, gradient in zip(kept, gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
