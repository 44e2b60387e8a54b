"""The noised latents of a step of Harmon, then the loss of what its denoiser predicts with the gradient."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from bench.ops.case import Case, Gate, Inputs, variant
from reca_fast.kernels import mar_diffusion_loss, mar_noise
from reca_fast.kernels.common.noise import Noise, normal_noise
from reca_fast.kernels.common.scale_in_place import launch_scale
from reca_fast.kernels.mar_diffusion_loss.contract import schedule
from reca_fast.kernels.mar_diffusion_loss.kernels import launch_gradient, launch_loss, launch_noise, launch_rows

SEED = 20_250_101


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    rows, channels = shape["rows"], shape["channels"]
    noise = normal_noise(SEED, rows, channels, device)  # what the seed stands for
    guess = noise + 0.3 * torch.randn(rows, channels, generator=generator, device=device)
    nu = torch.randn(rows, channels, generator=generator, device=device)
    return {
        "latents": torch.randn(rows, channels, generator=generator, device=device).to(dtype),
        "timesteps": torch.randint(1, 1000, (rows,), generator=generator, device=device),
        "row_weight": (torch.rand(rows, generator=generator, device=device) < 0.867).float(),
        "prediction": torch.cat((guess, nu), dim=1).to(dtype).requires_grad_(),
        "noise": noise,
        "upstream": torch.ones((), device=device),
    }


def autocast(inputs: Inputs) -> AbstractContextManager:
    """As the trainer has it around the first half; x_t comes out in the dtype in which the model reads it."""
    dtype = inputs["prediction"].dtype
    return nullcontext() if dtype.itemsize >= 4 else torch.autocast(inputs["latents"].device.type, dtype)


def results(x_t: Tensor, loss: Tensor, inputs: Inputs) -> list[Tensor]:
    return [x_t, loss.detach(), *torch.autograd.grad(loss, inputs["prediction"], inputs["upstream"])]


def ours(inputs: Inputs) -> list[Tensor]:
    latents, timesteps, weight = inputs["latents"], inputs["timesteps"], inputs["row_weight"]
    with autocast(inputs):
        x_t = mar_noise(latents, timesteps, seed=SEED)
    loss = mar_diffusion_loss(inputs["prediction"], latents, timesteps, seed=SEED, row_weight=weight)
    return results(x_t, loss, inputs)


def eager(inputs: Inputs) -> list[Tensor]:
    """The authors' steps: every coefficient gathered from an fp64 table and spread over the channels, both means, both
    likelihoods. Noise is drawn for its cost and given for its values; the tables' uploads do not count here.
    """
    x0, t, weight, prediction = (inputs[name] for name in ("latents", "timesteps", "row_weight", "prediction"))
    signal, spread, _, _, lo, distance, hi, _ = schedule(x0.device, torch.float64).unbind(1)
    beta = hi.exp()
    before = (signal / (1 - beta).sqrt()).square()
    c1, c2 = (beta * before.sqrt() / spread.square(), (1 - before) * (1 - beta).sqrt() / spread.square())

    def at(table: Tensor) -> Tensor:
        return table[t].float()[:, None] + torch.zeros(x0.shape, device=x0.device)

    torch.randn_like(x0)
    eps = inputs["noise"]
    x_t = at(signal) * x0 + at(spread) * eps
    eps_hat, nu = prediction.chunk(2, dim=1)
    nu = torch.cat((eps_hat.detach(), nu), dim=1).chunk(2, dim=1)[1]
    portion = (nu + 1) / 2
    log_variance = portion * at(hi) + (1 - portion) * at(lo)
    guess = at(1 / signal) * x_t - at(distance) * eps_hat.detach()
    mean, mean_hat = at(c1) * x0 + at(c2) * x_t, at(c1) * guess + at(c2) * x_t
    kl = -1.0 + log_variance - at(lo) + torch.exp(at(lo) - log_variance)
    kl = (0.5 * (kl + (mean - mean_hat) ** 2 * torch.exp(-log_variance))).mean(1) / math.log(2)
    gap, inverse = x0 - mean_hat, torch.exp(-0.5 * log_variance)

    def below(z: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * torch.pow(z, 3))))

    upper, lower = below(inverse * (gap + 1 / 255)), below(inverse * (gap - 1 / 255))
    first, last, between = (x.clamp(min=1e-12).log() for x in (upper, 1 - lower, upper - lower))
    likelihood = torch.where(x0 < -0.999, first, torch.where(x0 > 0.999, last, between))
    bound = torch.where(t == 0, -likelihood.mean(1) / math.log(2), kl)
    row = ((eps - eps_hat) ** 2).mean(1) + bound
    return results(x_t.to(prediction.dtype), (row * weight).sum() / weight.sum(), inputs)


def compile_all() -> None:
    """As flow_matching's, and latents in fp32, as an autoencoder that autocast does not reach gives them."""
    rows, channels, bf16, fp16, fp32 = 64, 16, torch.bfloat16, torch.float16, torch.float32
    latents, timesteps = torch.zeros(rows, channels, dtype=bf16), torch.zeros(rows, dtype=torch.int64)
    prediction = torch.zeros(rows, 2 * channels, dtype=bf16)
    weight, noise, table = torch.ones(rows), torch.zeros(rows, channels), schedule(latents.device)
    launch_noise(latents, timesteps, Noise(None, SEED), table, bf16)
    launch_noise(noise, timesteps, Noise(None, SEED), table, fp32)
    launch_noise(latents, timesteps, Noise(noise, 0), table, bf16)
    launch_loss(prediction, latents, timesteps, Noise(None, SEED), table, None, True, bf16)
    launch_loss(prediction, noise, timesteps, Noise(None, SEED), table, weight, True, bf16)
    launch_loss(prediction, latents, timesteps, Noise(noise, 0), table, weight, True, bf16)
    launch_loss(prediction.to(fp16), latents, timesteps, Noise(None, SEED), table, weight, True, fp32)
    launch_gradient(prediction, latents, timesteps, Noise(None, SEED), table, weight)
    launch_gradient(prediction.to(fp16), latents, timesteps, Noise(noise, 0), table, weight)
    with variant("without gradient"):
        launch_loss(prediction, latents, timesteps, Noise(noise, 0), table, None, True, None)
        launch_rows(prediction, latents, timesteps, Noise(None, SEED), table, weight)
    launch_scale(prediction, weight[0])


CASE = Case(
    name="mar_diffusion_loss",
    about="noised latents for the MAR denoiser, then squared error and variational bound with their gradient",
    shapes={"real": {"rows": 48 * 256 * 4, "channels": 16}, "small": {"rows": 512, "channels": 16}},
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    compile=compile_all,
    gates={
        # Two of the 66 look up the schedule; the noise stays within 64.
        "mar_noise_kernel": Gate(40, 0.75, max_instructions_per_element=66, elements_per_thread=8),
        # The likelihood at the first step, which a row in a thousand needs, takes the registers; the rest is short.
        "mar_loss_kernel": Gate(112, 0.25),
        "mar_loss_kernel without gradient": Gate(112, 0.25, store_bits=32),
        "scale_in_place_kernel": Gate(40, 0.75),
    },
    older_gates={  # as many warps; fewer registers would give no more
        "mar_loss_kernel": Gate(128, 0.25),
        "mar_loss_kernel without gradient": Gate(128, 0.25, store_bits=32),
    },
    goal="at most 4 launches, no sync, at most 1.3 times the minimum",
    max_launches=4,
    max_ratio=1.3,
)
