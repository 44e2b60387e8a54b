"""Triton kernels of flow matching and the functions that launch them; contract.py says what they compute."""

import torch
from torch import Tensor

from ..common.last_program import counters, sum_over_programs
from ..common.noise import Noise, normal_tile
from ..common.optional_triton import LAUNCH, tl, triton
from ..common.strides import rows_dense, stride_of
from ..common.tiles import tile_of


# A seed that 16 divides, or 1, must not be a kernel of its own, compiled in the middle of a run.
@triton.jit(do_not_specialize=["seed"])
def flow_interpolate_kernel(
    latents,
    timesteps,
    noise,
    out,
    tokens,
    latents_stride,
    timesteps_stride,
    noise_stride,
    seed: tl.int64,
    C: tl.constexpr,
    SEEDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = rows.to(tl.int64)[:, None]
    inside = rows < tokens
    t = tl.load(timesteps + rows.to(tl.int64) * timesteps_stride, mask=inside, other=0.0).to(tl.float32)[:, None]
    for start in range(0, C, BLOCK_C):
        channel = (start + tl.arange(0, BLOCK_C))[None, :]
        mask = inside[:, None] & (channel < C)
        if SEEDED:
            eps = normal_tile(seed, rows, start, BLOCK_T, BLOCK_C)
        else:
            eps = tl.load(noise + row * noise_stride + channel, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(latents + row * latents_stride + channel, mask=mask, other=0.0).to(tl.float32)
        x_t = (1.0 - t) * x + t * eps
        tl.store(out + row * C + channel, x_t.to(out.dtype.element_ty), mask=mask)


@triton.jit
def flow_interpolate_backward_kernel(
    upstream,
    timesteps,
    for_latents,
    for_noise,
    tokens,
    upstream_stride,
    timesteps_stride,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = rows.to(tl.int64)[:, None]
    inside = rows < tokens
    t = tl.load(timesteps + rows.to(tl.int64) * timesteps_stride, mask=inside, other=0.0).to(tl.float32)[:, None]
    for start in range(0, C, BLOCK_C):
        channel = (start + tl.arange(0, BLOCK_C))[None, :]
        mask = inside[:, None] & (channel < C)
        g = tl.load(upstream + row * upstream_stride + channel, mask=mask, other=0.0).to(tl.float32)
        if for_latents is not None:
            tl.store(for_latents + row * C + channel, ((1.0 - t) * g).to(for_latents.dtype.element_ty), mask=mask)
        if for_noise is not None:
            tl.store(for_noise + row * C + channel, (t * g).to(for_noise.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seed"])
def flow_loss_kernel(
    prediction,
    latents,
    noise,
    row_weight,
    divisor,
    losses,  # [T], or None
    partials,  # [programs], or None: then nothing is summed
    arrived,  # int32 counter at zero, left at zero
    total,
    gradient,  # [T, C], or None
    tokens,
    scale,
    prediction_stride,
    latents_stride,
    noise_stride,
    weight_stride,
    seed: tl.int64,
    C: tl.constexpr,
    SEEDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = rows.to(tl.int64)[:, None]
    inside = rows < tokens
    factor = tl.full((BLOCK_T,), 1.0 / C, tl.float32) * scale
    counts = inside
    if row_weight is not None:
        weight = tl.load(row_weight + rows.to(tl.int64) * weight_stride, mask=inside, other=0.0).to(tl.float32)
        counts = weight != 0.0
        factor *= weight
    if divisor is not None:
        total_weight = tl.load(divisor)
        factor = tl.where(total_weight != 0.0, factor / total_weight, 0.0)
    squares = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, C, BLOCK_C):
        channel = (start + tl.arange(0, BLOCK_C))[None, :]
        mask = counts[:, None] & (channel < C)
        if SEEDED:
            eps = normal_tile(seed, rows, start, BLOCK_T, BLOCK_C)
        else:
            eps = tl.load(noise + row * noise_stride + channel, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(latents + row * latents_stride + channel, mask=mask, other=0.0).to(tl.float32)
        p = tl.load(prediction + row * prediction_stride + channel, mask=mask, other=0.0).to(tl.float32)
        error = tl.where(mask, p - (eps - x), 0.0)
        if gradient is not None:
            g = error * (2.0 * factor)[:, None]
            inner = inside[:, None] & (channel < C)
            tl.store(gradient + row * C + channel, g.to(gradient.dtype.element_ty), mask=inner)
        squares += tl.sum(error * error, axis=1)
    per_token = tl.where(counts, squares * factor, 0.0)
    if losses is not None:
        tl.store(losses + rows, per_token, mask=inside)
    if partials is not None:
        sum_over_programs(tl.sum(per_token, axis=0), partials, arrived, total, BLOCK_P)


def launch_interpolate(latents: Tensor, timesteps: Tensor, noise: Noise, dtype: torch.dtype) -> Tensor:
    """x_t [T, C] in `dtype`."""
    latents, given = rows_dense(latents), rows_dense(noise.given)
    tokens, channels = latents.shape
    out = latents.new_empty((tokens, channels), dtype=dtype)
    tile = tile_of(channels)
    flow_interpolate_kernel[(triton.cdiv(tokens, tile["BLOCK_T"]),)](
        latents,
        timesteps,
        given,
        out,
        tokens,
        latents.stride(0),
        timesteps.stride(0),
        stride_of(given),
        noise.seed,
        SEEDED=noise.given is None,
        **tile,
        **LAUNCH,
    )
    return out


def launch_interpolate_backward(
    upstream: Tensor, timesteps: Tensor, latents_dtype: torch.dtype | None, noise_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Gradients of latents and noise in these dtypes; of no elements where the dtype is None."""
    upstream = rows_dense(upstream)
    tokens, channels = upstream.shape
    for_latents, for_noise = (
        None if dtype is None else upstream.new_empty((tokens, channels), dtype=dtype)
        for dtype in (latents_dtype, noise_dtype)
    )
    tile = tile_of(channels)
    flow_interpolate_backward_kernel[(triton.cdiv(tokens, tile["BLOCK_T"]),)](
        upstream,
        timesteps,
        for_latents,
        for_noise,
        tokens,
        upstream.stride(0),
        timesteps.stride(0),
        **tile,
        **LAUNCH,
    )
    empty = upstream.new_empty
    return empty(0) if for_latents is None else for_latents, empty(0) if for_noise is None else for_noise


def _launch_loss(
    prediction: Tensor,
    latents: Tensor,
    noise: Noise,
    row_weight: Tensor | None,
    *,
    divisor: Tensor | None = None,
    scale: float = 1.0,
    losses: Tensor | None = None,
    total: Tensor | None = None,
    gradient: Tensor | None = None,
) -> None:
    prediction, latents, given = rows_dense(prediction), rows_dense(latents), rows_dense(noise.given)
    tokens, channels = prediction.shape
    tile = tile_of(channels)
    programs = triton.cdiv(tokens, tile["BLOCK_T"])
    flow_loss_kernel[(programs,)](
        prediction,
        latents,
        given,
        row_weight,
        divisor,
        losses,
        None if total is None else total.new_empty(programs),
        None if total is None else counters(prediction.device),
        total,
        gradient,
        tokens,
        scale,
        prediction.stride(0),
        latents.stride(0),
        stride_of(given),
        stride_of(row_weight),
        noise.seed,
        SEEDED=noise.given is None,
        BLOCK_P=128,
        **tile,
        **LAUNCH,
    )


def launch_loss(
    prediction: Tensor,
    latents: Tensor,
    noise: Noise,
    row_weight: Tensor | None,
    mean: bool,
    gradient_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """The reduced loss [] and the gradient of the prediction, of no elements where `gradient_dtype` is None."""
    total = prediction.new_empty((), dtype=torch.float32)
    gradient = None if gradient_dtype is None else prediction.new_empty(tuple(prediction.shape), dtype=gradient_dtype)
    weighted = mean and row_weight is not None
    _launch_loss(
        prediction,
        latents,
        noise,
        row_weight,
        divisor=row_weight.sum(dtype=torch.float32) if weighted else None,  # type: ignore[union-attr]
        scale=1 / len(prediction) if mean and not weighted else 1.0,
        total=total,
        gradient=gradient,
    )
    return total, prediction.new_empty(0) if gradient is None else gradient


def launch_rows(prediction: Tensor, latents: Tensor, noise: Noise, row_weight: Tensor | None) -> Tensor:
    """The weighted loss of every token, fp32 [T]."""
    losses = prediction.new_empty(len(prediction), dtype=torch.float32)
    _launch_loss(prediction, latents, noise, row_weight, losses=losses)
    return losses


def launch_gradient(prediction: Tensor, latents: Tensor, noise: Noise, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the prediction, where factor [T] is the derivative of the total by the loss of each token."""
    gradient = prediction.new_empty(tuple(prediction.shape), dtype=dtype)
    _launch_loss(prediction, latents, noise, factor, gradient=gradient)
    return gradient
