"""flow_interpolate, flow_matching_loss and their noise: Triton kernels in the interpreter, then as torch sees them."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from reca_fast.kernels import flow_interpolate, flow_matching_loss
from tests.combinations import sampled

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 2**62 + 12345

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

SHAPES = {
    "ragged tail": (37, 64),
    "channels not a multiple of 4": (5, 6),
    "one number": (1, 1),
    "several blocks per token": (3, 1500),
    "no tokens": (0, 8),
}

WEIGHTS = pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=draw, dtype=torch.float64) * scale).to(dtype)


def arguments(tokens: int, channels: int, dtype: torch.dtype, scale: float = 1.0) -> dict[str, Tensor]:
    """prediction, latents and noise with a gradient; timesteps and row_weight (one of them zero) without."""
    moving = {
        name: numbers(tokens, channels, dtype=dtype, seed=place, scale=scale).requires_grad_()
        for place, name in enumerate(("prediction", "latents", "noise"))
    }
    still = {"timesteps": numbers(tokens, seed=3).sigmoid(), "row_weight": numbers(tokens, seed=4).clamp(min=0)}
    return moving | still


# The formulas


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def path(latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    t = timesteps[:, None]
    return (1 - t) * latents + t * noise


def loss(moving: Sequence[Tensor], row_weight: Tensor | None, reduction: str) -> Tensor:
    """Of a prediction, latents and noise."""
    prediction, latents, noise = moving
    rows = (wide(prediction) - (wide(noise) - wide(latents))).square().mean(1)
    weight = torch.ones_like(rows) if row_weight is None else row_weight.to(rows.dtype)
    total = (weight * rows).sum()
    return {"none": weight * rows, "sum": total, "mean": total / weight.sum()}[reduction]


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output, then the gradients for an upstream gradient that is neither 1 nor the same everywhere."""
    upstream = (numbers(*output.shape, seed=9) + 1.5).bfloat16().to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def doubled(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().double().requires_grad_(x.requires_grad) for name, x in given.items()}


def drop_largest_row(x: Tensor) -> Tensor:
    rows = x.clone()
    rows[rows.flatten(1).norm(dim=1).argmax() if x.dim() > 1 else rows.abs().argmax()] = 0
    return rows


MUTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "sign flip": torch.neg,
    "5 %": lambda x: x * 1.05,
    "lost row": drop_largest_row,
}


def assert_right(got: list[Tensor], truth: list[Tensor], baseline: list[Tensor], within_budget) -> None:
    """Every result is within the budget, and the budget would have caught typical mistakes."""
    for three in zip(got, truth, baseline, strict=True):
        assert within_budget(*three)
        right, base = three[1:]
        for mutant in [] if not right.any() else [*MUTANTS][: 4 if right.dim() else 3]:
            assert not within_budget(MUTANTS[mutant](right).to(base.dtype), right, base), mutant


# The kernels


@sampled(1, dtype=DTYPES, shape=SHAPES)
def test_interpolation_is_within_its_budget(shape, dtype, triton_kernels, within_budget) -> None:
    given = arguments(shape[0], shape[1], dtype)
    names = ["latents", "timesteps", "noise"]
    # The path in the latents' dtype; timesteps in theirs would make all of it fp32.
    given["timesteps"] = given["timesteps"].to(dtype)
    latents, timesteps, noise = (given[name] for name in names)
    got = with_gradients(flow_interpolate(latents, timesteps, noise=noise), [latents, noise])
    exact = [doubled(given)[name] for name in names]
    truth = with_gradients(path(*exact), exact[::2])
    assert_right(got, truth, with_gradients(path(latents, timesteps, noise), [latents, noise]), within_budget)


@sampled(2, dtype=DTYPES, shape=SHAPES, reduction=["mean", "sum", "none"], weighted={"": False, "weighted": True})
def test_loss_and_gradients_are_within_their_budget(
    weighted, reduction, shape, dtype, triton_kernels, within_budget
) -> None:
    """With noise: the gradients of all three; with a seed: the one that training needs, formed in the forward pass."""
    given = arguments(shape[0], shape[1], dtype)
    if shape[0] == 0 and reduction == "mean":
        assert flow_matching_loss(given["prediction"], given["latents"], given["timesteps"], seed=1) == 0
        return
    weight = given["row_weight"] + (shape[0] == 1) if weighted else None
    exact, names = doubled(given), ["prediction", "latents", "noise"]
    sure = None if weight is None else weight.double()

    moving, truths = [given[name] for name in names], [exact[name] for name in names]
    out = flow_matching_loss(*moving[:2], given["timesteps"], noise=moving[2], row_weight=weight, reduction=reduction)
    truth = with_gradients(loss(truths, sure, reduction), truths)
    assert_right(
        with_gradients(out, moving),
        truth,
        with_gradients(loss(moving, weight, reduction), moving),
        within_budget,
    )

    prediction, latents = given["prediction"], given["latents"].detach()
    noise = flow_interpolate(torch.zeros(shape), torch.ones(shape[0]), seed=SEED)  # x_1, the kernel's own noise
    out = flow_matching_loss(prediction, latents, given["timesteps"], seed=SEED, row_weight=weight, reduction=reduction)
    exact_prediction = exact["prediction"]
    truth = with_gradients(
        loss([exact_prediction, latents.double(), noise.double()], sure, reduction), [exact_prediction]
    )
    baseline = with_gradients(loss([prediction, latents, noise], weight, reduction), [prediction])
    assert_right(with_gradients(out, [prediction]), truth, baseline, within_budget)


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_extreme_values_do_not_overflow(scale, triton_kernels, within_budget) -> None:
    """Squares that fp16 cannot hold, in both directions."""
    given = arguments(9, 16, torch.float16, scale)
    names = ["prediction", "latents", "noise"]
    moving, exact = ([x[name] for name in names] for x in (given, doubled(given)))
    out = flow_matching_loss(*moving[:2], given["timesteps"], noise=moving[2])
    truth = with_gradients(loss(exact, None, "mean"), exact)
    assert_right(
        with_gradients(out, moving),
        truth,
        with_gradients(loss(moving, None, "mean"), moving),
        within_budget,
    )


def test_fp16_gradients_survive_until_the_loss_scale(triton_kernels) -> None:
    """1 / (C T) times a small error is below fp16's smallest number; times the loss scale it is not."""
    prediction = torch.full((64, 64), 1e-5, dtype=torch.float16, requires_grad=True)
    zeros = torch.zeros(64, 64, dtype=torch.float16)
    out = flow_matching_loss(prediction, zeros, torch.zeros(64), noise=zeros)
    (gradient,) = torch.autograd.grad(out, prediction, torch.tensor(2.0**20))
    expected = 2 * prediction.detach().double() / 64**2 * 2**20
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=0)


def test_any_strides_give_the_same_numbers(triton_kernels) -> None:
    """Transposed, sliced and expanded inputs give what their copies give."""
    prediction, latents = numbers(24, 19).t(), numbers(19, 48, seed=1)[:, 24:]
    t, weight = torch.tensor(0.3).expand(19), numbers(38, seed=2).abs()[::2]
    copies = [x.contiguous() for x in (prediction, latents, t, weight)]

    def run(prediction: Tensor, latents: Tensor, t: Tensor, weight: Tensor) -> list[Tensor]:
        leaf = prediction.detach().requires_grad_()
        out = flow_matching_loss(leaf, latents, t, seed=3, row_weight=weight)
        return [flow_interpolate(latents, t, seed=3), *with_gradients(out, [leaf])]

    for strided, dense in zip(run(prediction, latents, t, weight), run(*copies), strict=True):
        torch.testing.assert_close(strided, dense)


def test_same_bits_every_time(triton_kernels) -> None:
    prediction, latents, t = numbers(70, 16).requires_grad_(), numbers(70, 16, seed=1), torch.rand(70)
    runs = [with_gradients(flow_matching_loss(prediction, latents, t, seed=1), [prediction]) for _ in range(3)]
    for again in runs[1:]:
        assert all(map(torch.equal, again, runs[0]))


# Backward passes


@pytest.mark.parametrize("way", ["reference", "triton"])
@WEIGHTS
def test_later_backward_passes_leave_earlier_gradients_alone(weighted, way, request, within_budget) -> None:
    """The first takes the gradient from the forward pass, scaled in place; the next ones compute it anew."""
    if way == "triton":
        request.getfixturevalue("triton_kernels")
    prediction, latents, t = numbers(10, 8).requires_grad_(), numbers(10, 8, seed=1), torch.rand(10)
    weight = torch.arange(10.0) if weighted else None
    out = flow_matching_loss(prediction, latents, t, seed=2, row_weight=weight)
    first, second, third = (
        torch.autograd.grad(out, prediction, torch.tensor(scale), retain_graph=True)[0] for scale in (3.0, 1.0, 0.0)
    )
    torch.testing.assert_close(first, second * 3)
    assert second.any() and not third.any()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_gradient_can_be_differentiated(reduction) -> None:
    args = [numbers(3, 4, dtype=torch.float64, seed=place).requires_grad_() for place in range(3)]
    t, weight = torch.rand(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)

    def run(prediction: Tensor, latents: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        out = flow_matching_loss(prediction, latents, t, noise=noise, row_weight=weight, reduction=reduction)
        return out, flow_interpolate(latents, t, noise=noise)

    assert torch.autograd.gradcheck(run, args)
    assert torch.autograd.gradgradcheck(run, args)


@REDUCTIONS
@WEIGHTS
def test_gradients_with_a_seed(weighted, reduction) -> None:
    prediction, latents = (numbers(5, 6, dtype=torch.float64, seed=place).requires_grad_() for place in range(2))
    t, weight = torch.rand(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64) if weighted else None

    def run(prediction: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        out = flow_matching_loss(prediction, latents, t, seed=4, row_weight=weight, reduction=reduction)
        return out, flow_interpolate(latents, t, seed=4)

    assert torch.autograd.gradcheck(run, (prediction, latents))


def test_what_is_not_needed_is_not_written(triton_kernels) -> None:
    """One launch for the loss, the gradient only if there is one to give, nothing in backward for a factor of 1."""
    traffic = pytest.importorskip("bench.traffic")
    prediction, latents, t = numbers(64, 64).bfloat16(), numbers(64, 64, seed=1), torch.rand(64)
    read, one = 64 * 64 * (2 + 4), torch.ones(())
    with traffic.counting() as counted:
        flow_matching_loss(prediction, latents, t, seed=1)
    assert counted.kernels == ["flow_loss_kernel"]
    assert read < counted.bytes < read + 200
    prediction.requires_grad_()
    with traffic.counting() as counted:
        torch.autograd.grad(flow_matching_loss(prediction, latents, t, seed=1), prediction, one)
    assert counted.kernels == ["flow_loss_kernel", "scale_in_place_kernel"]
    assert read < counted.bytes - 64 * 64 * 2 < read + 200


# As torch sees them


def test_autocast_decides_where_it_is_on() -> None:
    """x_t leaves in the dtype in which the next product reads it: one rounding, the same that a cast would do."""
    latents, t = numbers(6, 8), torch.rand(6)
    full = flow_interpolate(latents, t, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow_interpolate(latents, t, seed=1), full.bfloat16())
    assert full.dtype == torch.float32


@pytest.mark.slow
@REDUCTIONS
def test_it_compiles_without_a_break(reduction) -> None:
    torch._dynamo.reset()
    prediction, latents = (numbers(6, 8, seed=place).requires_grad_() for place in range(2))
    t, weight = torch.rand(6), torch.rand(6)

    def run(prediction: Tensor, latents: Tensor, seed: int) -> Tensor:
        x_t = flow_interpolate(latents, t, seed=seed)
        return x_t.mean() + flow_matching_loss(
            prediction, latents, t, seed=seed, row_weight=weight, reduction=reduction
        )

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for seed in (3, SEED):
        got, expected = (with_gradients(f(prediction, latents, seed), [prediction, latents]) for f in (compiled, run))
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_registered_as_torch_wants_it() -> None:
    ops, t, weight = torch.ops.reca_fast, torch.rand(5), torch.rand(5)
    prediction, latents, noise = (numbers(5, 6, seed=place).requires_grad_() for place in range(3))
    still, turned = latents.detach(), numbers(6, 5).t()
    for op, args in [
        (ops.flow_interpolate, (latents, t, noise, 0, torch.float32)),
        (ops.flow_interpolate, (turned, t, None, SEED, torch.bfloat16)),
        (ops.flow_interpolate_backward, (turned, t, torch.float32, None)),
        (ops.flow_matching_loss, (prediction, still, None, SEED, weight, True, torch.float32)),
        (ops.flow_matching_loss, (prediction, latents, noise, 0, None, False, torch.float32)),
        (ops.flow_matching_loss, (turned, still, None, SEED, None, True, None)),
        (ops.flow_matching_loss_rows, (prediction, still, None, SEED, weight)),
        (ops.flow_matching_loss_backward, (turned, still, None, SEED, weight, torch.bfloat16)),
        (ops.scale_in_place, (still.clone(), torch.tensor(2.0))),
    ]:
        torch.library.opcheck(op.default, args)


# Bad arguments


def call(function=flow_matching_loss, **changed: object):
    good: dict[str, object] = {"latents": torch.ones(5, 8), "timesteps": torch.ones(5), "seed": 1}
    if function is flow_matching_loss:
        good |= {"prediction": torch.ones(5, 8)}
    return lambda: function(**(good | changed))


BAD = {
    "no seed": ("seed", call(seed=None)),
    "seed and noise": ("seed", call(noise=torch.ones(5, 8))),
    "negative seed": ("seed", call(seed=-1)),
    "huge seed": ("seed", call(seed=2**63)),
    "fractional seed": ("seed", call(seed=1.5)),
    "flat latents": ("latents", call(latents=torch.ones(5))),
    "integer latents": ("latents", call(flow_interpolate, latents=torch.ones(5, 8, dtype=torch.int64))),
    "a timestep per picture": ("timesteps", call(flow_interpolate, timesteps=torch.ones(1))),
    "timesteps to learn": ("timesteps", call(flow_interpolate, timesteps=torch.ones(5, requires_grad=True))),
    "timesteps elsewhere": ("timesteps", call(timesteps=torch.ones(5, device="meta"))),
    "narrow noise": ("noise", call(seed=None, noise=torch.ones(5, 4))),
    "short prediction": ("prediction", call(prediction=torch.ones(4, 8))),
    "prediction elsewhere": ("prediction", call(prediction=torch.ones(5, 8, device="meta"))),
    "a weight per channel": ("row_weight", call(row_weight=torch.ones(8))),
    "weights to learn": ("row_weight", call(row_weight=torch.ones(5, requires_grad=True))),
    "unknown reduction": ("reduction", call(reduction="total")),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case: str) -> None:
    name, run = BAD[case]
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        run()


def test_masks_are_weights() -> None:
    prediction, latents, t = numbers(6, 4), numbers(6, 4, seed=1), torch.rand(6)
    keep = torch.tensor([True, False, True, True, False, False])
    masked = flow_matching_loss(prediction, latents, t, seed=1, row_weight=keep)
    torch.testing.assert_close(
        masked, flow_matching_loss(prediction, latents, t, seed=1, reduction="none")[keep].mean()
    )


def test_no_seed_is_a_kernel_of_its_own() -> None:
    """Triton specialises integers that are 1 or that 16 divides: a step in 16 would compile in the middle of a run."""
    aot = pytest.importorskip("bench.aot", reason="Triton is not installed")
    from reca_fast.kernels.common.noise import Noise
    from reca_fast.kernels.flow_matching import kernels as flow
    from reca_fast.kernels.mar_diffusion_loss import kernels as mar

    x, t, step, table = torch.zeros(16, 16), torch.zeros(16), torch.zeros(16, dtype=torch.int64), torch.zeros(1000, 8)
    with aot.compiling(90) as hits:
        for seed in (1, 7, 16, 48, SEED):
            flow.launch_interpolate(x, t, Noise(None, seed), torch.float32)
            flow.launch_loss(x, x, Noise(None, seed), None, True, torch.float32)
            mar.launch_noise(x, step, Noise(None, seed), table, torch.float32)
            mar.launch_loss(torch.zeros(16, 32), x, step, Noise(None, seed), table, None, True, torch.float32)
    assert len({id(hit[1]) for hit in hits}) == 4
