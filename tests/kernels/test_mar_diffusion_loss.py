"""mar_noise and mar_diffusion_loss against the formulas as the paper's symbols have them, in fp64, and against losses
and gradients recorded from the authors' code.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from reca_fast.kernels import adaln_modulate, mar_diffusion_loss, mar_noise, mar_residual_block
from reca_fast.kernels.common.implementation import kernels
from reca_fast.kernels.common.noise import normal_noise
from tests.combinations import sampled
from tests.places import PARITY

pytestmark = pytest.mark.usefixtures("one_thread")

PORTION = torch.arange(1001, dtype=torch.float64) / 1000
CURVE = torch.cos(math.pi / 2 * (PORTION + 0.008) / 1.008) ** 2
BETA = (1 - CURVE[1:] / CURVE[:-1]).clamp(max=0.999)
ABAR = torch.cumprod(1 - BETA, 0)
BEFORE = torch.cat((torch.ones(1), ABAR[:-1]))
C1, C2 = BETA * BEFORE.sqrt() / (1 - ABAR), (1 - BEFORE) * (1 - BETA).sqrt() / (1 - ABAR)
LOWEST = (BETA * (1 - BEFORE) / (1 - ABAR)).log()
LOWEST[0] = LOWEST[1]


def rows_formula(prediction, latents, timesteps, noise) -> tuple[Tensor, Tensor]:
    """(x_t, loss of every row), with both means of the bound written out."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    eps_hat, nu = prediction.to(wide).chunk(2, dim=1)
    x0, eps = latents.to(wide), noise.to(wide)
    abar, c1, c2, lo, hi = (x[timesteps, None].to(wide) for x in (ABAR, C1, C2, LOWEST, BETA.log()))
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    mse = (eps - eps_hat).square().mean(1)
    guess = x_t / abar.sqrt() - (1 / abar - 1).sqrt() * eps_hat.detach()
    mean, mean_hat = c1 * x0 + c2 * x_t, c1 * guess + c2 * x_t
    q = (nu + 1) / 2 * hi + (1 - nu) / 2 * lo
    kl = 0.5 * (q - lo - 1 + (lo - q).exp() + (mean - mean_hat).square() * (-q).exp())

    def below(a: Tensor) -> Tensor:
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))) / 2

    p, r = (below((x0 - mean_hat + edge) * (-q / 2).exp()) for edge in (1 / 255, -1 / 255))
    low_end, high_end, between = (x.clamp(min=1e-12).log() for x in (p, 1 - r, p - r))
    likelihood = torch.where(x0 < -0.999, low_end, torch.where(x0 > 0.999, high_end, between))
    bound = torch.where(timesteps[:, None] == 0, -likelihood, kl).mean(1) / math.log(2)
    return x_t, mse + bound


def formula(prediction, latents, timesteps, *, noise, row_weight=None, reduction="mean") -> Tensor:
    rows = rows_formula(prediction, latents, timesteps, noise)[1]
    weight = torch.ones_like(rows) if row_weight is None else row_weight.to(rows.dtype)
    if reduction == "none":
        return rows * weight
    return (rows * weight).sum() / (weight.sum() if reduction == "mean" else 1)


def arguments(rows, channels, dtype=torch.float32, seed=0) -> tuple[dict[str, Tensor], Tensor]:
    """The last steps, the first ones, where the guess is close enough for the likelihood to tell, and any others."""
    draw = torch.Generator().manual_seed(seed)
    latents, noise, off, nu = (torch.randn(rows, channels, generator=draw) for _ in range(4))
    timesteps = torch.randint(0, 1000, (rows,), generator=draw)
    special = torch.tensor([0, 0, 1, 998, 999])[:rows]
    timesteps[: len(special)] = special
    guess = noise + torch.where(timesteps[:, None] == 0, 0.3, 0.5) * off
    prediction = torch.cat((guess, nu), dim=1).to(dtype).requires_grad_()
    given = {"latents": latents.to(dtype), "timesteps": timesteps, "noise": noise.to(dtype)}
    return {"prediction": prediction, **given}, torch.rand(rows, generator=draw)


def wide(args: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for name, x in args.items()
    }


def results(run, args, **options) -> list[Tensor]:
    """The loss and the gradient of the prediction."""
    loss = run(**args, **options)
    upstream = torch.linspace(1, 2, len(loss)).to(loss.dtype) if loss.dim() else torch.tensor(0.5, dtype=loss.dtype)
    return [loss.detach(), *torch.autograd.grad(loss, args["prediction"], upstream)]


@pytest.fixture
def triton():
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")

    def run(function, *args, **options):
        with interpreter.interpreting(), kernels("triton"):
            return function(*args, **options)

    return run


@pytest.mark.slow
@sampled(
    2,
    shape={"Harmon's channels": (70, 16), "ragged": (33, 6), "one row": (1, 16)},
    dtype=[torch.float32, torch.bfloat16, torch.float16],
    reduction=["mean", "sum", "none"],
)
def test_kernels_are_within_their_budget(shape, dtype, reduction, triton, within_budget) -> None:
    args, weight = arguments(shape[0], shape[1], dtype)
    for weights in (None, weight):
        options = {"row_weight": weights, "reduction": reduction}
        truth, baseline = results(formula, wide(args), **options), results(formula, args, **options)
        for run in (triton(results, mar_diffusion_loss, args, **options), results(mar_diffusion_loss, args, **options)):
            for three in zip(run, truth, baseline, strict=True):
                assert within_budget(*three)


def test_noised_latents_are_within_their_budget(triton, within_budget) -> None:
    args, _ = arguments(70, 16)
    given = args["latents"], args["timesteps"]
    truth, baseline = (rows_formula(**x)[0].detach() for x in (wide(args), args))
    for got in (mar_noise(*given, noise=args["noise"]), triton(mar_noise, *given, noise=args["noise"])):
        assert within_budget(got, truth, baseline)


def test_seed_stands_for_its_noise(triton) -> None:
    args, _ = arguments(70, 16)
    args["noise"] = normal_noise(7, 70, 16, torch.device("cpu"))
    prediction, latents, timesteps, noise = args.values()
    torch.testing.assert_close(
        triton(mar_noise, latents, timesteps, seed=7), mar_noise(latents, timesteps, noise=noise)
    )
    seeded = triton(mar_diffusion_loss, prediction, latents, timesteps, seed=7)
    torch.testing.assert_close(seeded, mar_diffusion_loss(**args))


def test_first_step_in_every_bin(triton) -> None:
    """Guesses from near to hopeless, latents in the end bins and between: within 1e-5, where fp64 can tell."""
    off = torch.linspace(-3, 3, 61)[:, None].expand(61, 12)
    latents = torch.linspace(-1.5, 1.5, 12).expand(61, 12).contiguous()
    noise = torch.zeros(61, 12)
    prediction = torch.cat((off, torch.linspace(-3, 3, 12).expand(61, 12)), dim=1).requires_grad_()
    args = {
        "prediction": prediction,
        "latents": latents,
        "timesteps": torch.zeros(61, dtype=torch.int64),
        "noise": noise,
    }
    truth = results(formula, wide(args), reduction="none")
    for run in (
        triton(results, mar_diffusion_loss, args, reduction="none"),
        results(mar_diffusion_loss, args, reduction="none"),
    ):
        for got, right in zip(run, truth, strict=True):
            torch.testing.assert_close(got.double(), right, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("nu", [-150.0, -60.0, 60.0, 1e4])
def test_extreme_variances_are_nowhere_nan(nu, triton) -> None:
    """Huge numbers where the formula has them, but nowhere a NaN, at t = 0 too."""
    args, _ = arguments(20, 16)
    with torch.no_grad():
        args["prediction"][:, 16:] = nu
    for got, same in zip(triton(results, mar_diffusion_loss, args), results(mar_diffusion_loss, args), strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, same, rtol=1e-4, atol=1e-5)


def test_rows_of_weight_zero_are_not_looked_at(triton) -> None:
    args, weight = arguments(20, 16)
    weight[::3] = 0
    expected = triton(results, mar_diffusion_loss, args, row_weight=weight)
    with torch.no_grad():
        args["prediction"][::3] = math.nan
    for run in (results, lambda *a, **k: triton(results, *a, **k)):
        loss, grad = run(mar_diffusion_loss, args, row_weight=weight)
        torch.testing.assert_close([loss, grad], expected)
        assert not grad[::3].any() and grad[1::3].any()


def test_all_rows_ignored(triton) -> None:
    args, weight = arguments(9, 16)
    loss, grad = triton(results, mar_diffusion_loss, args, row_weight=torch.zeros_like(weight), reduction="sum")
    assert loss == 0 and not grad.any()


def test_without_rows_the_loss_is_zero(triton) -> None:
    args, _ = arguments(0, 16)
    loss, grad = triton(results, mar_diffusion_loss, args, reduction="sum")
    assert loss == 0 and grad.shape == (0, 32)


def test_views_and_same_bits_twice(triton) -> None:
    args, weight = arguments(70, 16)
    apart = {name: torch.stack((x.detach(), x.detach()), dim=-1)[..., 0] for name, x in args.items()}
    apart["prediction"].requires_grad_()
    first, again, views = (triton(results, mar_diffusion_loss, x, row_weight=weight) for x in (args, args, apart))
    for one, two, three in zip(first, again, views, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


def test_a_second_backward_leaves_the_first_gradient_alone(triton) -> None:
    """The gradient handed out first stays as it is."""
    args, weight = arguments(9, 16)

    def twice():
        loss = mar_diffusion_loss(**args, row_weight=weight)
        first = torch.autograd.grad(loss, args["prediction"], torch.tensor(1.0), retain_graph=True)[0]
        kept = first.clone()
        return first, kept, torch.autograd.grad(loss, args["prediction"], torch.tensor(2.0))[0]

    first, kept, second = triton(twice)
    assert torch.equal(first, kept)
    torch.testing.assert_close(second, 2 * first)


def test_bound_reaches_only_the_variance() -> None:
    args, _ = arguments(6, 4)
    args = wide(args)
    eps_hat, nu = args["prediction"].detach().split(4, dim=1)
    others = {name: x for name, x in args.items() if name != "prediction"}

    def loss(nu: Tensor) -> Tensor:
        return mar_diffusion_loss(torch.cat((eps_hat, nu), dim=1), **others)

    assert torch.autograd.gradcheck(loss, nu.requires_grad_())
    grad = results(mar_diffusion_loss, args)[1][:, :4]
    torch.testing.assert_close(grad, 0.5 * 2 * (eps_hat - args["noise"]) / (6 * 4))


MUTANTS = {
    "zeros": torch.zeros_like,
    "sign flip": torch.neg,
    "5 % too large": lambda x: x * 1.05,
    "a dropped row": lambda x: x * (x.flatten(1).norm(dim=1) < x.flatten(1).norm(dim=1).max())[:, None],
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_budget_rejects_mutants(mutant, within_budget) -> None:
    args, _ = arguments(20, 16, torch.bfloat16)
    truth, baseline = results(formula, wide(args))[1], results(formula, args)[1]
    assert not within_budget(mutant(truth).to(baseline.dtype), truth, baseline)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_it_compiles_without_a_break(reduction) -> None:
    args, weight = arguments(9, 16, torch.bfloat16)
    compiled = torch.compile(mar_diffusion_loss, fullgraph=True, backend="aot_eager")
    options = {"row_weight": weight, "reduction": reduction}
    for got, expected in zip(
        results(compiled, args, **options), results(mar_diffusion_loss, args, **options), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_as_torch_sees_it() -> None:
    args, weight = arguments(9, 16)
    values = (*args.values(), 0, weight)
    torch.library.opcheck(torch.ops.reca_fast.mar_diffusion_loss_rows.default, values)
    torch.library.opcheck(torch.ops.reca_fast.mar_noise.default, (*values[1:4], 0, torch.float32))


BAD = {
    "prediction": torch.zeros(3, 16),
    "latents": torch.zeros(3, 4, 4),
    "timesteps": torch.tensor([0, 1000, 5]),
    "timesteps below": torch.tensor([0, -1, 5]),
    "timesteps in [0, 1]": torch.rand(3),
    "noise": torch.zeros(3, 4),
    "noise of integers": torch.zeros(3, 16, dtype=torch.int64),
    "row_weight": torch.zeros(2),
    "row_weight elsewhere": torch.zeros(3, device="meta"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case) -> None:
    args, _ = arguments(3, 16)
    with pytest.raises(ValueError, match=rf"^{case.split()[0]}: expected "):
        mar_diffusion_loss(**args | {case.split()[0]: BAD[case]})


def test_more_mistakes_are_named() -> None:
    args, _ = arguments(3, 16)
    given = {"latents": args["latents"], "timesteps": args["timesteps"]}
    for wrong, message in (({}, "seed, noise: "), ({"seed": -1}, "seed: "), ({"seed": 1.5}, "seed: ")):
        with pytest.raises(ValueError, match=f"^{message}expected "):
            mar_noise(**given, **wrong)
    with pytest.raises(ValueError, match=r"^reduction='max': expected "):
        mar_diffusion_loss(**args, reduction="max")


@pytest.mark.parametrize("task", ["recon", "text2image"])
@pytest.mark.parametrize("case", ["a", "b"])
def test_recorded_denoiser_and_loss(case, task) -> None:
    """The authors' row losses from their conditions, noise and weights, through our blocks; and a gradient."""
    recorded = load_file(PARITY / "harmon" / f"diffusion_loss_{case}.safetensors")
    prefix = "mar.diffloss.net."
    net = {name.removeprefix(prefix): x for name, x in recorded.items() if name.startswith(prefix)}
    watched = net["final_layer.linear.weight"].requires_grad_()
    timesteps, noise, mask = (recorded[f"{task}.{name}"] for name in ("timesteps", "noise", "mask"))
    repeats = len(timesteps) // mask.numel()
    latents, z = (recorded[x].flatten(0, 1).repeat(repeats, 1) for x in ("latent_tokens", f"{task}.z"))

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, net[f"{name}.weight"], net[f"{name}.bias"])

    angles = timesteps[:, None] * 10000 ** (-torch.arange(128) / 128)
    time = linear(torch.cat((angles.cos(), angles.sin()), dim=1), "time_embed.mlp.0")
    condition = F.silu(linear(F.silu(time), "time_embed.mlp.2") + linear(z, "cond_embed"))
    a = linear(mar_noise(latents, timesteps, noise=noise), "input_proj")
    for block in range(sum(name.endswith("in_ln.weight") for name in net)):
        name = f"res_blocks.{block}"
        vectors = (net[f"{name}.{x}.{y}"] for x in ("in_ln", "mlp.0", "mlp.2") for y in ("weight", "bias"))
        a = mar_residual_block(a, linear(condition, f"{name}.adaLN_modulation.1"), *vectors)
    shift, scale = linear(condition, "final_layer.adaLN_modulation.1").chunk(2, dim=1)
    prediction = linear(adaln_modulate(a, shift, scale), "final_layer.linear")
    rows = mar_diffusion_loss(prediction, latents, timesteps, noise=noise, reduction="none")
    loss = mar_diffusion_loss(prediction, latents, timesteps, noise=noise, row_weight=mask.flatten().repeat(repeats))
    torch.testing.assert_close(rows, recorded[f"{task}.row_loss"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, recorded[f"{task}.loss"].squeeze(), rtol=1e-5, atol=0)
    gradient = recorded.get(f"{task}.grad.{prefix}final_layer.linear.weight")
    if gradient is not None:
        (grad,) = torch.autograd.grad(loss, watched)
        assert (grad - gradient).abs().max() < 1e-4 * gradient.abs().max()
