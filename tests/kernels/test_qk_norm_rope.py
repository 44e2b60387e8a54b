"""qk_norm_rope: its kernels in the interpreter, and the operation as torch sees it (autograd, compile, errors)."""

import pytest
import torch
from torch import Tensor

from reca_fast.kernels import qk_norm_rope
from reca_fast.kernels.common.implementation import kernels
from tests.combinations import sampled

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("q", "k", "dq", "dk", "dq_weight", "dk_weight")


def formula(q, k, q_weight, k_weight, cos, sin):
    """As the authors' decoder writes it; statistics and rotation in fp32 or wider, two roundings in between."""
    wide = torch.promote_types(q.dtype, torch.float32)

    def one(x: Tensor, weight: Tensor) -> Tensor:
        y = x.to(wide)
        y = (weight * (y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)).to(x.dtype).to(wide)
        (u, v), c, s = y.chunk(2, dim=-1), *(t[:, None, : t.shape[1] // 2] for t in (cos, sin))
        return torch.cat((u * c - v * s, v * c + u * s), dim=-1).to(x.dtype)

    return one(q, q_weight), one(k, k_weight)


def arguments(tokens, heads, kv_heads, dim, dtype=torch.float32, seed=0, scale=1.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(tokens, h, dim, generator=draw).mul(scale).to(dtype) for h in (heads, kv_heads))
    weights = [(1 + 0.3 * torch.randn(dim, generator=draw)).to(dtype) for _ in "qk"]
    angles = (6 * torch.rand(tokens, dim // 2, generator=draw)).repeat(1, 2)
    return [*(x.requires_grad_() for x in (q, k, *weights)), angles.cos(), angles.sin()]


def results(run, args: list[Tensor]) -> list[Tensor]:
    """(q, k), then the gradients of both and of both weights."""
    out = run(*args)
    draw = torch.Generator().manual_seed(9)
    upstream = [torch.randn(x.shape, generator=draw).bfloat16().to(x.dtype) for x in out]
    return [*(x.detach() for x in out), *torch.autograd.grad(out, args[:4], upstream)]


def exact(args: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_(x.requires_grad) for x in args]


@pytest.fixture
def triton_results():
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")

    def run(args: list[Tensor]) -> list[Tensor]:
        with interpreter.interpreting(), kernels("triton"):
            return results(qk_norm_rope, args)

    return run


SHAPES = {
    "BAGEL's heads": (19, 28, 4, 128),
    "heads not a power of two": (5, 6, 3, 80),
    "one token": (1, 2, 2, 64),
    "smallest head": (33, 3, 1, 2),
    "wide head": (2, 2, 1, 256),
}


@pytest.mark.slow
@sampled(1, shape=SHAPES, dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_kernels_are_within_their_budget(shape, dtype, triton_results, within_budget) -> None:
    tokens, heads, kv_heads, dim = shape
    args = arguments(tokens, heads, kv_heads, dim, dtype)
    truth, baseline = results(formula, exact(args)), results(formula, args)
    for name, *three in zip(NAMES, triton_results(args), truth, baseline, strict=True):
        assert within_budget(*three), name


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_extreme_values_meet_eps_and_fp32_statistics(scale, triton_results, within_budget) -> None:
    """Small rows meet eps, large ones overflow fp16 squares unless the statistics are fp32."""
    args = arguments(4, 3, 1, 32, torch.bfloat16, scale=scale)
    truth, baseline = results(formula, exact(args)), results(formula, args)
    for name, *three in zip(NAMES, triton_results(args), truth, baseline, strict=True):
        assert within_budget(*three), name


def test_without_tokens_gradients_are_zero(triton_results) -> None:
    got = triton_results(arguments(0, 3, 1, 32))
    assert [x.shape[0] for x in got[:4]] == [0, 0, 0, 0] and not any(x.any() for x in got[4:])


def fused_projection(args: list[Tensor]) -> list[Tensor]:
    """The same q and k as columns of one [T, (H + Hkv + 1) * D] projection, offset by one head."""
    q, k, *rest = args
    whole = torch.cat((torch.zeros_like(k[:, :1]), q, k), dim=1).detach().flatten(1)
    whole = whole.unflatten(1, (-1, q.shape[-1]))
    views = whole[:, 1 : 1 + q.shape[1]], whole[:, 1 + q.shape[1] :]
    assert not views[0].is_contiguous()
    return [*(x.requires_grad_() for x in views), *rest]


def transposed(args: list[Tensor]) -> list[Tensor]:
    q, k, *rest = args
    views = (x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in (q, k))
    return [*views, *rest]


def reversed_numbers(args: list[Tensor]) -> list[Tensor]:
    """Numbers of a head far apart in memory."""
    q, k, *rest = args
    views = (x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k))
    return [*views, *rest]


@pytest.mark.parametrize("view", [fused_projection, transposed, reversed_numbers])
def test_views_give_what_their_copies_give(view, triton_results) -> None:
    args = arguments(5, 4, 2, 16)
    for name, got, expected in zip(NAMES, triton_results(view(args)), triton_results(args), strict=True):
        assert torch.equal(got, expected), name


def test_same_bits_twice(triton_results) -> None:
    args = arguments(40, 4, 2, 16, torch.bfloat16)
    for first, second in zip(triton_results(args), triton_results(args), strict=True):
        assert torch.equal(first, second)


def test_only_what_needs_a_gradient(triton_results) -> None:
    q, k, q_weight, k_weight, cos, sin = arguments(3, 2, 1, 16)
    expected = triton_results([q, k, q_weight, k_weight, cos, sin])[2]
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")
    with interpreter.interpreting(), kernels("triton"):
        out = qk_norm_rope(q, k.detach(), q_weight.detach(), k_weight.detach(), cos, sin)
        draw = torch.Generator().manual_seed(9)
        (dq,) = torch.autograd.grad(out[0], q, torch.randn(q.shape, generator=draw).bfloat16().float())
    assert torch.equal(dq, expected)


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


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_budget_rejects_mutants(mutant, within_budget) -> None:
    args = arguments(9, 4, 2, 16, torch.bfloat16)
    truth, baseline = results(formula, exact(args)), results(formula, args)
    for name, right, base in zip(NAMES, truth, baseline, strict=True):
        assert not within_budget(mutant(right).to(base.dtype), right, base), name


def test_gradients_are_the_numerical_ones() -> None:
    args = exact(arguments(3, 3, 1, 6))
    assert torch.autograd.gradcheck(lambda *x: qk_norm_rope(*x, *args[4:]), args[:4])


def test_as_torch_sees_it() -> None:
    args = arguments(3, 4, 2, 16)
    torch.library.opcheck(torch.ops.reca_fast.qk_norm_rope.default, (*args, 1e-6))
    torch.library.opcheck(
        torch.ops.reca_fast.qk_norm_rope.default,
        (*(x.detach().requires_grad_(x.requires_grad) for x in transposed(args)), 1e-6),
    )


def test_it_compiles_without_a_break() -> None:
    args = arguments(3, 4, 2, 16, torch.bfloat16)
    compiled = torch.compile(qk_norm_rope, fullgraph=True, backend="aot_eager")
    for name, got, expected in zip(NAMES, results(compiled, args), results(qk_norm_rope, args), strict=True):
        assert torch.equal(got, expected), name


BAD = {
    "q": {"q": torch.zeros(3, 4, 15)},
    "k": {"k": torch.zeros(2, 2, 16)},
    "k of another dtype": {"k": torch.zeros(3, 2, 16, dtype=torch.bfloat16)},
    "q_weight": {"q_weight": torch.zeros(8)},
    "k_weight": {"k_weight": torch.zeros(16, 1)},
    "cos": {"cos": torch.zeros(3, 8)},
    "sin": {"sin": torch.zeros(3, 16, dtype=torch.int64)},
    "cos elsewhere": {"cos": torch.zeros(3, 16, device="meta")},
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case) -> None:
    names = ("q", "k", "q_weight", "k_weight", "cos", "sin")
    good = dict(zip(names, arguments(3, 4, 2, 16), strict=True))
    with pytest.raises(ValueError, match=rf"^{case.split()[0]}: expected "):
        qk_norm_rope(**good | BAD[case])
