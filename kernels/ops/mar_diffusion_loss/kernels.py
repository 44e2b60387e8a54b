"""Triton kernels of the MAR diffusion loss and the functions that launch them; contract.py says what they compute."""

import torch
from torch import Tensor

from ..common.last_program import counters, sum_over_programs
from ..common.noise import Noise, normal_tile
from ..common.optional_triton import LAUNCH, tl, triton
from ..common.strides import rows_dense, stride_of
from ..common.tiles import tile_of

COLUMNS = 8
"""Of the table of the schedule; `contract.schedule` says what they hold."""


@triton.jit(do_not_specialize=["seed"])
def mar_noise_kernel(
    latents,
    timesteps,
    noise,
    table,
    out,
    rows_in_all,
    latents_stride,
    timesteps_stride,
    noise_stride,
    seed: tl.int64,
    C: tl.constexpr,
    SEEDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = rows.to(tl.int64)[:, None]
    inside = rows < rows_in_all
    t = tl.load(timesteps + rows.to(tl.int64) * timesteps_stride, mask=inside, other=0)
    known = (t >= 0) & (t < STEPS)
    signal = tl.load(table + t * COLUMNS, mask=known, other=float("nan"))[:, None]
    spread = tl.load(table + t * COLUMNS + 1, mask=known, other=float("nan"))[:, None]
    for start in range(0, C, BLOCK_C):
        channel = (start + tl.arange(0, BLOCK_C))[None, :]
        mask = inside[:, None] & (channel < C)
        if SEEDED:
            eps = normal_tile(seed, rows, start, BLOCK_T, BLOCK_C)
        else:
            eps = tl.load(noise + row * noise_stride + channel, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(latents + row * latents_stride + channel, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + row * C + channel, (signal * x + spread * eps).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _log_sigmoid(y):
    """(log sigmoid(y), sigmoid(y)), exact in both tails."""
    tail = tl.exp(-tl.abs(y))
    logarithm = tl.minimum(y, 0.0) - tl.log2(1.0 + tail) * 0.6931471805599453
    return logarithm, tl.where(y < 0, tail, 1.0) / (1.0 + tail)


@triton.jit
def _first_step(error, u, x, half_range, low, distance):
    """As `contract.first_step`."""
    inverse = tl.exp(tl.minimum(-0.5 * (low + u), 60.0))
    gap = -distance * error
    upper, lower = inverse * (gap + 0.00392156862745098), inverse * (gap - 0.00392156862745098)
    tame = (tl.abs(upper) < 30.0) & (tl.abs(lower) < 30.0)
    upper = tl.minimum(tl.maximum(upper, -30.0), 30.0)
    lower = tl.minimum(tl.maximum(lower, -30.0), 30.0)
    width = tl.where(tame, inverse * 0.00784313725490196, upper - lower)
    y_upper = 1.5957691216057308 * upper * (1.0 + 0.044715 * upper * upper)
    y_lower = 1.5957691216057308 * lower * (1.0 + 0.044715 * lower * lower)
    delta = 1.5957691216057308 * width * (1.0 + 0.044715 * (upper * upper + upper * lower + lower * lower))
    log_below, below = _log_sigmoid(y_upper)
    log_above, above = _log_sigmoid(-y_lower)
    series = delta * (1.0 - delta * (0.5 - delta * (0.16666667 - delta * (0.041666667 - delta * 0.0083333333))))
    rest = tl.where(delta < 0.125, series, 1.0 - tl.exp(-delta))
    rest = tl.maximum(rest, 1e-37)
    d_upper = -0.7978845608028654 * half_range * upper * (1.0 + 0.134145 * upper * upper)
    d_lower = -0.7978845608028654 * half_range * lower * (1.0 + 0.134145 * lower * lower)
    first, last = x < -0.999, x > 0.999
    d_below, d_above = (1.0 - below) * d_upper, -(1.0 - above) * d_lower
    between = log_below + log_above + tl.log2(rest) * 0.6931471805599453
    d_between = d_below + d_above + (1.0 - rest) / rest * (d_upper - d_lower)
    logarithm = tl.where(first, log_below, tl.where(last, log_above, between))
    derivative = tl.where(first, d_below, tl.where(last, d_above, d_between))
    floor = -27.631021115928547
    return -tl.maximum(logarithm, floor), tl.where(logarithm > floor, -derivative, 0.0)


@triton.jit(do_not_specialize=["seed"])
def mar_loss_kernel(
    prediction,
    latents,
    noise,
    timesteps,
    table,
    row_weight,
    divisor,
    losses,  # [N], or None
    partials,  # [programs], or None: then nothing is summed
    arrived,  # int32 counter at zero, left at zero
    total,
    gradient,  # [N, 2C], or None
    rows_in_all,
    scale,
    prediction_stride,
    latents_stride,
    noise_stride,
    timesteps_stride,
    weight_stride,
    seed: tl.int64,
    C: tl.constexpr,
    SEEDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STEPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = rows.to(tl.int64)[:, None]
    inside = rows < rows_in_all
    factor = tl.full((BLOCK_T,), 1.0 / C, tl.float32) * scale
    counts = inside
    if row_weight is not None:
        weight = tl.load(row_weight + rows.to(tl.int64) * weight_stride, mask=inside, other=0.0).to(tl.float32)
        counts = weight != 0.0
        factor *= weight
    if divisor is not None:
        total_weight = tl.load(divisor)
        factor = tl.where(total_weight != 0.0, factor / total_weight, 0.0)
    t = tl.load(timesteps + rows.to(tl.int64) * timesteps_stride, mask=inside, other=1)
    known = (t >= 0) & (t < STEPS)
    half_range = tl.load(table + t * COLUMNS + 2, mask=known, other=float("nan"))[:, None]
    sharpness = tl.load(table + t * COLUMNS + 3, mask=known, other=float("nan"))[:, None]
    first_rows = (t == 0) & counts
    sums = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, C, BLOCK_C):
        channel = (start + tl.arange(0, BLOCK_C))[None, :]
        mask = counts[:, None] & (channel < C)
        if SEEDED:
            eps = normal_tile(seed, rows, start, BLOCK_T, BLOCK_C)
        else:
            eps = tl.load(noise + row * noise_stride + channel, mask=mask, other=0.0).to(tl.float32)
        place = prediction + row * prediction_stride + channel
        error = eps - tl.load(place, mask=mask, other=0.0).to(tl.float32)
        nu = tl.load(place + C, mask=mask, other=0.0).to(tl.float32)
        u = half_range * (nu + 1.0)
        shrunk = tl.exp(-u) * (1.0 + sharpness * error * error)
        vb = 0.5 * (u - 1.0 + shrunk)
        d_nu = 0.5 * half_range * (1.0 - shrunk)
        if tl.max(first_rows.to(tl.int32), axis=0) > 0:  # a row in a thousand
            here = first_rows[:, None] & (channel < C)
            x = tl.load(latents + row * latents_stride + channel, mask=here, other=0.0).to(tl.float32)
            low, distance = tl.load(table + 4), tl.load(table + 5)
            nll, d_nll = _first_step(error, u, x, half_range, low, distance)
            vb, d_nu = tl.where(here, nll, vb), tl.where(here, d_nll, d_nu)
        per_channel = error * error + vb * 1.4426950408889634
        sums += tl.sum(tl.where(mask, per_channel, 0.0), axis=1)
        if gradient is not None:
            inner = inside[:, None] & (channel < C)
            target = gradient + row * (2 * C) + channel
            g = tl.where(mask, error * (-2.0 * factor)[:, None], 0.0)
            tl.store(target, g.to(gradient.dtype.element_ty), mask=inner)
            g = tl.where(mask, d_nu * (1.4426950408889634 * factor)[:, None], 0.0)
            tl.store(target + C, g.to(gradient.dtype.element_ty), mask=inner)
    per_row = tl.where(counts, sums * factor, 0.0)
    if losses is not None:
        tl.store(losses + rows, per_row, mask=inside)
    if partials is not None:
        sum_over_programs(tl.sum(per_row, axis=0), partials, arrived, total, BLOCK_P)


def launch_noise(latents: Tensor, timesteps: Tensor, noise: Noise, table: Tensor, dtype: torch.dtype) -> Tensor:
    """x_t [N, C] in `dtype`; `table` is the schedule."""
    latents, given = rows_dense(latents), rows_dense(noise.given)
    rows, channels = latents.shape
    out = latents.new_empty((rows, channels), dtype=dtype)
    tile = tile_of(channels)
    mar_noise_kernel[(triton.cdiv(rows, tile["BLOCK_T"]),)](
        *(latents, timesteps, given, table, out, rows),
        *(latents.stride(0), timesteps.stride(0), stride_of(given), noise.seed),
        SEEDED=noise.given is None,
        STEPS=len(table),
        COLUMNS=COLUMNS,
        **tile,
        **LAUNCH,
    )
    return out


def _launch(
    prediction: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    noise: Noise,
    table: Tensor,
    row_weight: Tensor | None,
    *,
    divisor: Tensor | None = None,
    scale: float = 1.0,
    losses: Tensor | None = None,
    total: Tensor | None = None,
    gradient: Tensor | None = None,
) -> None:
    prediction, latents, given = rows_dense(prediction), rows_dense(latents), rows_dense(noise.given)
    rows, channels = latents.shape
    tile = tile_of(channels)
    programs = triton.cdiv(rows, tile["BLOCK_T"])
    mar_loss_kernel[(programs,)](
        *(prediction, latents, given, timesteps, table, row_weight, divisor, losses),
        None if total is None else total.new_empty(programs),
        None if total is None else counters(prediction.device),
        *(total, gradient, rows, scale, prediction.stride(0), latents.stride(0), stride_of(given)),
        *(timesteps.stride(0), stride_of(row_weight), noise.seed),
        SEEDED=noise.given is None,
        BLOCK_P=128,
        STEPS=len(table),
        COLUMNS=COLUMNS,
        **tile,
        **LAUNCH,
    )


def launch_loss(
    prediction: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    noise: Noise,
    table: Tensor,
    row_weight: Tensor | None,
    mean: bool,
    gradient_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """The reduced loss [] and the gradient of the prediction, of no elements where `gradient_dtype` is None."""
    total = prediction.new_empty((), dtype=torch.float32)
    gradient = None if gradient_dtype is None else prediction.new_empty(tuple(prediction.shape), dtype=gradient_dtype)
    weighted = mean and row_weight is not None
    _launch(
        *(prediction, latents, timesteps, noise, table, row_weight),
        divisor=row_weight.sum(dtype=torch.float32) if weighted else None,  # type: ignore[union-attr]
        scale=1 / len(prediction) if mean and not weighted else 1.0,
        total=total,
        gradient=gradient,
    )
    return total, prediction.new_empty(0) if gradient is None else gradient


def launch_rows(
    prediction: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    noise: Noise,
    table: Tensor,
    row_weight: Tensor | None,
) -> Tensor:
    """The weighted loss of every row, fp32 [N]."""
    losses = prediction.new_empty(len(prediction), dtype=torch.float32)
    _launch(prediction, latents, timesteps, noise, table, row_weight, losses=losses)
    return losses


def launch_gradient(
    prediction: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    noise: Noise,
    table: Tensor,
    factor: Tensor,
) -> Tensor:
    """The gradient of the prediction, where factor [N] is the derivative of the total by the loss of each row."""
    gradient = torch.empty_like(prediction, memory_format=torch.contiguous_format)
    _launch(prediction, latents, timesteps, noise, table, factor, gradient=gradient)
    return gradient
