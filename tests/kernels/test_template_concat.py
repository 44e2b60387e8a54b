"""template_concat: its kernels in the interpreter, and the operation as torch sees it (autograd, compile, errors)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from reca_fast.kernels import template_concat
from reca_fast.kernels.common.implementation import kernels
from tests.combinations import sampled

pytestmark = pytest.mark.usefixtures("one_thread")
MOVING = (
    *("embedding", "visual", "visual_position_embedding"),
    *("latents", "latent_position_embedding", "timestep_embedding"),
)


def formula(a: dict) -> Tensor:
    """Row by row, in the dtype of the sources."""
    parts, rows = [], []
    if "token_ids" in a:
        parts.append(a["embedding"][a["token_ids"]])
        rows.append(a.get("token_rows"))
    if "visual" in a:
        x = a["visual"]
        if "visual_position_ids" in a:
            x = x + a["visual_position_embedding"][a["visual_position_ids"]].to(x.dtype)
        parts.append(x)
        rows.append(a.get("visual_rows"))
    if "latents" in a:
        x = a["latents"]
        if "timestep_embedding" in a:
            picture = torch.arange(len(a["timestep_embedding"])).repeat_interleave(a["latent_cu_seqlens"].diff())
            x = x + a["timestep_embedding"][picture].to(x.dtype)
        if "latent_position_ids" in a:
            x = x + a["latent_position_embedding"][a["latent_position_ids"]].to(x.dtype)
        parts.append(x)
        rows.append(a.get("latent_rows"))
    whole, given = torch.cat(parts), [x for x in rows if x is not None]
    return whole[torch.cat(given).argsort()] if given else whole


def arguments(
    tokens=5, visual=7, pictures=(6, 4, 9), dim=24, dtype=torch.float32, rows=True, positions=True, times=True
) -> dict:
    """All sources (0 rows or no pictures: left out), positions of pictures counted from 0, rows in random order."""
    draw = torch.Generator().manual_seed(tokens + dim)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw).to(dtype).requires_grad_()

    latents = sum(pictures)
    order = torch.randperm(tokens + visual + latents, generator=draw).split((tokens, visual, latents))
    places = dict(zip(("token_rows", "visual_rows", "latent_rows"), order, strict=True))
    a: dict = {}
    if tokens:
        a |= {"token_ids": torch.randint(11, (tokens,), generator=draw), "embedding": normal(11, dim)}
    if visual:
        a |= {"visual": normal(visual, dim)}
        if positions:
            a |= {"visual_position_ids": torch.randint(9, (visual,), generator=draw)}
            a |= {"visual_position_embedding": normal(9, dim)}
    if pictures:
        a |= {"latents": normal(latents, dim)}
        if positions:
            a |= {"latent_position_ids": torch.cat([torch.arange(n) for n in pictures])}
            a |= {"latent_position_embedding": normal(max(pictures), dim)}
        if times:
            a |= {"latent_cu_seqlens": torch.tensor((0, *pictures)).cumsum(0)}
            a |= {"timestep_embedding": normal(len(pictures), dim)}
    if rows:
        a |= {name: x for name, x in places.items() if len(x)}
    return a


def results(run, a: dict) -> dict[str, Tensor]:
    """The packed rows, then the gradient of every argument that has one."""
    out = run(a)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).bfloat16().to(out.dtype)
    moving = [name for name in MOVING if name in a and a[name].requires_grad]
    grads = torch.autograd.grad(out, [a[name] for name in moving], upstream) if moving else ()
    return {"packed": out.detach(), **dict(zip(moving, grads, strict=True))}


def exact(a: dict) -> dict:
    return {
        name: x.detach().double().requires_grad_(x.requires_grad) if x.dtype.is_floating_point else x
        for name, x in a.items()
    }


def ours(a: dict) -> Tensor:
    return template_concat(**a)


@pytest.fixture
def triton_results():
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")

    def run(a: dict) -> dict[str, Tensor]:
        with interpreter.interpreting(), kernels("triton"):
            return results(ours, a)

    return run


CASES: dict[str, dict[str, Any]] = {
    "all sources": {},
    "pictures that do not divide": {"pictures": (130, 1, 67), "visual": 35, "tokens": 33, "dim": 64},
    "width not a power of two": {"dim": 40, "pictures": (3,)},
    "wide": {"dim": 640, "pictures": (5, 5), "visual": 3},
    "an empty picture": {"pictures": (4, 0, 3)},
    "one row of each": {"tokens": 1, "visual": 1, "pictures": (1,)},
    "in order": {"rows": False},
    "text alone": {"visual": 0, "pictures": ()},
    "latents alone, in order": {"tokens": 0, "visual": 0, "rows": False},
    "no positions": {"positions": False},
    "no times": {"times": False},
    "nothing added": {"times": False, "positions": False},
}


@pytest.mark.slow
@sampled(1, case=CASES, dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_kernels_are_within_their_budget(case, dtype, triton_results, within_budget) -> None:
    a = arguments(**case, dtype=dtype)
    got, truth, baseline = triton_results(a), results(formula, exact(a)), results(formula, a)
    for name, x in got.items():
        assert within_budget(x, truth[name], baseline[name]), name


def test_narrow_result_of_wide_sums(triton_results) -> None:
    """fp32 tables under a bf16 result: one rounding, at the end."""
    a = arguments(dtype=torch.float32)
    assert torch.equal(triton_results(a | {"dtype": torch.bfloat16})["packed"], formula(a).bfloat16().detach())


def test_views_give_what_their_copies_give(triton_results) -> None:
    a = arguments()
    wide = {n: torch.stack((x, x), dim=-1)[..., 0].detach().requires_grad_() for n, x in a.items() if n in MOVING}
    got, expected = triton_results(a | wide), triton_results(a)
    for name, x in expected.items():
        assert torch.equal(got[name], x), name


def test_pictures_of_other_shapes_share_positions_only_where_they_are_equal(triton_results) -> None:
    a = arguments(pictures=(6, 6, 4))
    a["latent_position_ids"] = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 3, 3, 4, 0, 5, 1, 2, 0])
    torch.testing.assert_close(triton_results(a)["packed"], formula(a).detach())


def test_same_bits_twice(triton_results) -> None:
    a = arguments(pictures=(70, 40), dtype=torch.bfloat16)
    first, second = triton_results(a), triton_results(a)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.parametrize("wanted", [("visual",), ("latents",), ("timestep_embedding",), ("visual", "latents")])
def test_only_what_needs_a_gradient(wanted, triton_results) -> None:
    a = arguments()
    expected = triton_results(a)
    frozen = {n: x.detach().requires_grad_(n in wanted) if n in MOVING else x for n, x in a.items()}
    got = triton_results(frozen)
    assert set(got) == {"packed", *wanted}
    for name, x in got.items():
        assert torch.equal(x, expected[name]), name


def test_the_gradient_of_latents_alone_is_not_copied(triton_results) -> None:
    a = {"latents": torch.randn(6, 8, requires_grad=True), "timestep_embedding": torch.randn(2, 8, requires_grad=True)}
    upstream = torch.randn(6, 8)
    got = torch.autograd.grad(
        template_concat(**a, latent_cu_seqlens=torch.tensor([0, 2, 6])), list(a.values()), upstream
    )
    assert got[0].data_ptr() == upstream.data_ptr()
    torch.testing.assert_close(got[1], torch.stack((upstream[:2].sum(0), upstream[2:].sum(0))))


def drop_largest_row(x: Tensor) -> Tensor:
    rows = x.clone()
    rows[rows.norm(dim=1).argmax()] = 0
    return rows


MUTANTS = {
    "zeros": torch.zeros_like,
    "sign flip": torch.neg,
    "5 % too large": lambda x: x * 1.05,
    "a dropped row": drop_largest_row,
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_budget_rejects_mutants(mutant, within_budget) -> None:
    a = arguments(dtype=torch.bfloat16)
    truth, baseline = results(formula, exact(a)), results(formula, a)
    for name, right in truth.items():
        assert not within_budget(mutant(right).to(baseline[name].dtype), right, baseline[name]), name


@pytest.mark.parametrize("rows", [True, False])
def test_gradients_are_the_numerical_ones(rows) -> None:
    a = exact(arguments(2, 3, (2, 3), 2, rows=rows))
    moving = [a[name] for name in MOVING]
    assert torch.autograd.gradcheck(lambda *x: ours(a | dict(zip(MOVING, x, strict=True))), moving)


@pytest.mark.parametrize("case", ["all sources", "text alone", "latents alone, in order"])
def test_as_torch_sees_it(case) -> None:
    a = arguments(**CASES[case])
    order = (
        *("token_ids", "embedding", "token_rows"),
        *("visual", "visual_rows", "visual_position_ids", "visual_position_embedding"),
        *("latents", "latent_rows", "latent_position_ids", "latent_position_embedding"),
        *("timestep_embedding", "latent_cu_seqlens"),
    )
    length = len(formula(a))
    given = (*(a.get(name) for name in order), length, torch.float32)
    torch.library.opcheck(torch.ops.reca_fast.template_concat.default, given)


def test_it_compiles_without_a_break() -> None:
    a = arguments(dtype=torch.bfloat16)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    got, expected = results(compiled, a), results(ours, a)
    assert all(torch.equal(x, expected[name]) for name, x in got.items())


BAD: dict[str, dict[str, Any]] = {
    "embedding": {"embedding": None},
    "visual of another width": {"embedding": torch.zeros(11, 8)},
    "token_ids": {"token_ids": torch.full((5,), 11)},
    "token_ids below zero": {"token_ids": torch.full((5,), -1)},
    "visual": {"visual": torch.zeros(7, 5)},
    "visual_rows": {"visual_rows": torch.arange(6)},
    "token_rows twice": {"token_rows": torch.zeros(5, dtype=torch.int64)},
    "token_rows beyond": {"token_rows": torch.arange(5) + 100},
    "visual_rows missing": {"visual_rows": None},
    "visual_position_ids": {"visual_position_embedding": None},
    "visual_position_ids too large": {"visual_position_ids": torch.full((7,), 9)},
    "latents": {"latents": torch.zeros(19, 24, dtype=torch.int64)},
    "latent_position_ids": {"latent_position_ids": torch.zeros(3, dtype=torch.int64)},
    "timestep_embedding": {"timestep_embedding": torch.zeros(3, 8)},
    "latent_cu_seqlens": {"latent_cu_seqlens": torch.tensor([0, 6, 19])},
    "latent_cu_seqlens missing": {"latent_cu_seqlens": None},
    "latent_cu_seqlens too long": {"latent_cu_seqlens": torch.tensor([0, 6, 10, 20])},
    "latent_cu_seqlens falling": {"latent_cu_seqlens": torch.tensor([0, 10, 6, 19])},
    "length": {"length": 30},
    "dtype": {"dtype": torch.int64},
    "dtype of 8 bits": {"dtype": torch.float8_e4m3fn},
    "visual of no dimension": {"visual": torch.zeros(())},
    "visual as a list": {"visual": [0.0]},
    "visual elsewhere": {"visual": torch.zeros(7, 24, device="meta")},
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case) -> None:
    with pytest.raises(ValueError, match=rf"^{case.split()[0]}: expected "):
        template_concat(**arguments() | BAD[case])


def test_a_call_without_sources_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^token_ids: expected at least one"):
        template_concat()
