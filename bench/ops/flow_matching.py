"""The noised latents of a step of BAGEL, then the loss of the predicted velocity with its gradient."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from bench.ops.case import Case, Gate, Inputs, variant
from reca_fast.kernels import flow_interpolate, flow_matching_loss
from reca_fast.kernels.common.noise import Noise, normal_noise
from reca_fast.kernels.common.scale_in_place import launch_scale
from reca_fast.kernels.flow_matching.kernels import (
    launch_gradient,
    launch_interpolate,
    launch_interpolate_backward,
    launch_loss,
    launch_rows,
)

SEED = 20_250_101


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    """Latents and timesteps are fp32 in the authors' step, whatever the model computes in."""
    tokens, channels = shape["tokens"], shape["channels"]
    prediction = torch.randn(tokens, channels, generator=generator, device=device)
    return {
        "latents": torch.randn(tokens, channels, generator=generator, device=device),
        "timesteps": torch.rand(tokens, generator=generator, device=device).clamp(min=1e-3),
        "prediction": prediction.to(dtype).requires_grad_(),
        "noise": normal_noise(SEED, tokens, channels, device),  # what the seed stands for
        "upstream": torch.ones((), device=device),
    }


def autocast(inputs: Inputs) -> AbstractContextManager:
    """As the trainer has it around the first half; x_t comes out in the dtype in which the model reads it."""
    dtype = inputs["prediction"].dtype
    return nullcontext() if dtype.itemsize >= 4 else torch.autocast(inputs["latents"].device.type, dtype)


def results(x_t: Tensor, loss: Tensor, inputs: Inputs) -> list[Tensor]:
    return [x_t, loss.detach(), *torch.autograd.grad(loss, inputs["prediction"], inputs["upstream"])]


def ours(inputs: Inputs) -> list[Tensor]:
    latents, timesteps = inputs["latents"], inputs["timesteps"]
    with autocast(inputs):
        x_t = flow_interpolate(latents, timesteps, seed=SEED)
    return results(x_t, flow_matching_loss(inputs["prediction"], latents, timesteps, seed=SEED), inputs)


def eager(inputs: Inputs) -> list[Tensor]:
    """The authors' sequence; the noise is drawn for its cost and given for its values, so that results compare."""
    latents, timesteps, prediction = inputs["latents"], inputs["timesteps"], inputs["prediction"]
    torch.randn_like(latents)
    noise = inputs["noise"]
    x_t = (1 - timesteps[:, None]) * latents + timesteps[:, None] * noise
    target = noise - latents
    error = (prediction - target[timesteps > 0]) ** 2
    return results(x_t.to(prediction.dtype), error.mean(dim=-1).sum() / len(latents), inputs)


def compile_all() -> None:
    """With a seed and with noise, with and without autocast, weights and a gradient; fp16 forms it in fp32."""
    tokens, channels, bf16, fp16, fp32 = 64, 64, torch.bfloat16, torch.float16, torch.float32
    latents, noise, timesteps = torch.zeros(tokens, channels), torch.zeros(tokens, channels), torch.zeros(tokens)
    prediction, half = latents.to(bf16), latents.to(fp16)
    for dtype in (fp32, bf16):
        launch_interpolate(latents, timesteps, Noise(None, SEED), dtype)
        launch_interpolate(latents, timesteps, Noise(noise, 0), dtype)
    for wanted in ((fp32, fp32), (fp32, None)):
        launch_interpolate_backward(latents, timesteps, *wanted)
    launch_loss(prediction, latents, Noise(None, SEED), None, True, bf16)
    launch_loss(prediction, latents, Noise(None, SEED), timesteps, True, bf16)
    launch_loss(prediction, latents, Noise(noise, 0), timesteps, True, bf16)
    launch_loss(half, latents, Noise(None, SEED), None, True, fp32)
    launch_loss(latents, latents, Noise(None, SEED), None, True, fp32)
    launch_gradient(prediction, latents, Noise(None, SEED), timesteps, bf16)
    launch_gradient(half, latents, Noise(noise, 0), timesteps, fp16)
    with variant("without gradient"):
        launch_loss(prediction, latents, Noise(None, SEED), None, True, None)
        launch_rows(prediction, latents, Noise(noise, 0), timesteps)
    launch_scale(prediction, timesteps[0])
    launch_scale(latents, timesteps[0])


CASE = Case(
    name="flow_matching",
    about="noised latents, then the velocity loss and its gradient, with noise that is regenerated instead of stored",
    shapes={
        "real": {"tokens": 8 * 4096, "channels": 64},
        "small": {"tokens": 512, "channels": 64},
    },
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    compile=compile_all,
    gates={
        "flow_interpolate_kernel": Gate(40, 0.75, max_instructions_per_element=64, elements_per_thread=8),
        # 14 of them are the final sum, which one program of all executes: the others execute 70.
        "flow_loss_kernel": Gate(40, 0.75, max_instructions_per_element=88, elements_per_thread=8),
        # One number per row, or one in all.
        "flow_loss_kernel without gradient": Gate(40, 0.75, store_bits=32),
        "flow_interpolate_backward_kernel": Gate(40, 0.75),
        "scale_in_place_kernel": Gate(40, 0.75),
    },
    goal="2 launches that move data and one that finds the upstream gradient to be 1, at most 1.15 times the minimum",
    max_launches=3,
    max_ratio=1.15,
)
