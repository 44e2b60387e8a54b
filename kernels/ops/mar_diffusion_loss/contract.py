"""Harmon's diffusion loss: noisy latents for the denoiser; squared error plus variational bound of what it predicts.

Symbols: N rows (a token and a repeat each), C channels, t the step 0..999, abar the share of the signal's variance that
is left at step t. The prediction [N, 2C] is eps_hat, the noise, and nu, where the variance lies between its bounds,
side by side.

    x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps            loss of a row = mse + vb, means over C
    mse = (eps - eps_hat)^2
    vb  = KL(posterior || model) / ln 2; at t = 0 minus the log2-probability of x0 in a bin of half-width 1/255

The bound trains nu alone: no gradient of vb reaches eps_hat. Both means of the KL are c1 x0 + c2 x_t, so they differ by
c1 sqrt(1/abar - 1) (eps - eps_hat). lo and hi are the logarithms of the least and the largest variance of the model.
With s = (hi - lo) / 2 and u = s (nu + 1),

    KL = (u - 1 + e^-u (1 + k (eps - eps_hat)^2)) / 2,      k = (c1^2 (1/abar - 1)) / exp(lo)

So a row needs two numbers of the schedule, and x0 only where t = 0. The schedule is one fp32 table per device, computed
once in fp64. The authors upload fourteen fp64 tables per call, and the host waits for each.

`mar_noise` is one launch, keeps nothing, and has no gradient: latents come from a frozen autoencoder.

`mar_diffusion_loss`, reduced to a number, is one launch that also writes the finished gradient of `prediction`. The
last program to arrive adds the partial sums in a fixed order, so the result is deterministic. A weighted mean needs one
tiny launch before, for the sum of the weights. The backward pass is a launch that finds the gradient of the loss to be
1 and returns.

Rows of weight 0 contribute nothing, whatever they hold, and their prediction is not even read. Better still is not to
compute it: gather the rows that count (latents, timesteps, condition) before the denoiser and pass no weights at all.

In eager torch the two are 249 kernels. Neither Liger nor torch has it.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..common.arguments import (
    Reduction,
    autocast_dtype,
    expect,
    expect_floating,
    expect_no_gradient,
    expect_noise,
    expect_reduction,
    expect_shape,
    expect_tensors,
)
from ..common.implementation import runs_triton
from ..common.noise import Noise
from ..common.reductions import checked_row_weight, one_over, row_factors, weighted
from ..common.scale_in_place import scale_in_place
from ..common.torch_op import torch_op
from .kernels import COLUMNS, launch_gradient, launch_loss, launch_noise, launch_rows

STEPS = 1000
BIN = 1 / 255
"""Half the width of a bin at the first step."""
FLOOR = math.log(1e-12)
"""The least log-probability at the first step."""
ROOT = math.sqrt(2 / math.pi)


@cache
def schedule(device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """The cosine schedule as a table [1000, 8], a row per step: sqrt(abar), sqrt(1 - abar), s, k, lo, sqrt(1/abar - 1),
    hi, 0, in the symbols of the top of this page. It is computed in fp64, once per device, and kept.
    """
    f = np.cos(math.pi / 2 * (np.arange(STEPS + 1) / STEPS + 0.008) / 1.008) ** 2
    beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
    abar = np.cumprod(1 - beta)
    before = np.concatenate(([1.0], abar[:-1]))
    hi = np.log(beta)
    variance = beta * (1 - before) / (1 - abar)
    variance[0] = variance[1]
    lo, distance = np.log(variance), np.sqrt(1 / abar - 1)
    k = (beta * np.sqrt(before) / (1 - abar) * distance) ** 2 / variance
    columns = (np.sqrt(abar), np.sqrt(1 - abar), (hi - lo) / 2, k, lo, distance, hi, np.zeros(STEPS))
    table = np.stack(columns, axis=1).astype(np.float64 if dtype == torch.float64 else np.float32)
    assert table.shape == (STEPS, COLUMNS)
    with torch.inference_mode(False):  # or the first call under inference mode would leave a table unfit for training
        return torch.from_numpy(table).to(device)


def _rows_of(timesteps: Tensor, wide: torch.dtype) -> tuple[Tensor, ...]:
    """The columns of the schedule for the timestep of every row, [N, 1] each."""
    return schedule(timesteps.device, wide)[timesteps].unsqueeze(-1).unbind(1)


def _wide(*tensors: Tensor | None) -> torch.dtype:
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def reference_noise(latents: Tensor, timesteps: Tensor, noise: Noise, dtype: torch.dtype) -> Tensor:
    """As `launch_noise`, in plain torch."""
    wide = _wide(latents, noise.given)
    signal, spread, *_ = _rows_of(timesteps, wide)
    return (signal * latents.to(wide) + spread * noise.like(latents).to(wide)).to(dtype).contiguous()


def first_step(
    error: Tensor, u: Tensor, x: Tensor, half_range: Tensor, low: Tensor, distance: Tensor
) -> tuple[Tensor, Tensor]:
    """Minus the log-probability of x in its bin at step 0, and its derivative by nu.

    At step 0, c2 is 0, so the distance of x from the predicted mean is -distance * error. The normal distribution
    function is approximated by a sigmoid S, Phi(a) = S(2 sqrt(2/pi) (a + 0.044715 a^3)). The probability of a bin is a
    difference, S(y) - S(z) = S(y) S(-z) (1 - e^(z - y)). Every factor on the right has an accurate logarithm, which a
    difference of two rounded numbers near 1 has not. Beyond 30 deviations nothing changes, so the ends of the bin are
    clamped there before their cubes overflow.
    """
    inverse = (-0.5 * (low + u)).clamp(max=60).exp()
    gap = -distance * error
    upper, lower = inverse * (gap + BIN), inverse * (gap - BIN)
    tame = (upper.abs() < 30) & (lower.abs() < 30)
    upper, lower = upper.clamp(-30, 30), lower.clamp(-30, 30)
    width = torch.where(tame, inverse * 2 * BIN, upper - lower)
    y_upper, y_lower = (2 * ROOT * a * (1 + 0.044715 * a * a) for a in (upper, lower))
    delta = 2 * ROOT * width * (1 + 0.044715 * (upper * upper + upper * lower + lower * lower))
    rest = -torch.expm1(-delta).clamp(max=-1e-37)
    d_upper, d_lower = (-ROOT * half_range * a * (1 + 3 * 0.044715 * a * a) for a in (upper, lower))
    log_below, log_above = (torch.nn.functional.logsigmoid(y) for y in (y_upper, -y_lower))
    d_below, d_above = torch.sigmoid(-y_upper) * d_upper, -torch.sigmoid(y_lower) * d_lower
    between = log_below + log_above + rest.log()
    d_between = d_below + d_above + (1 - rest) / rest * (d_upper - d_lower)
    first, last = x < -0.999, x > 0.999
    logarithm = torch.where(first, log_below, torch.where(last, log_above, between))
    derivative = torch.where(first, d_below, torch.where(last, d_above, d_between))
    return -logarithm.clamp(min=FLOOR), torch.where(logarithm > FLOOR, -derivative, 0)


def reference_terms(prediction: Tensor, latents: Tensor, timesteps: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """The loss of every row [N], mse + vb, and its gradient [N, 2C]; in fp32 or wider."""
    wide = _wide(prediction, latents, noise.given)
    channels = latents.shape[1]
    eps_hat, nu = prediction.to(wide).split(channels, dim=1)
    _, _, half_range, sharpness, low, distance, _, _ = _rows_of(timesteps, wide)
    error = noise.like(latents).to(wide) - eps_hat
    u = half_range * (nu + 1)
    shrunk = (-u).exp() * (1 + sharpness * error * error)
    first = (timesteps == 0).unsqueeze(-1)
    nll, d_nll = first_step(error, u, latents.to(wide), half_range, low, distance)
    vb = torch.where(first, nll, 0.5 * (u - 1 + shrunk)) / math.log(2)
    d_nu = torch.where(first, d_nll, 0.5 * half_range * (1 - shrunk)) / math.log(2)
    return (error.square() + vb).mean(-1), torch.cat((-2 * error, d_nu), dim=1) / channels


def reference_loss(
    prediction: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    noise: Noise,
    row_weight: Tensor | None,
    mean: bool,
    gradient_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """As `launch_loss`, in plain torch."""
    terms, gradient = reference_terms(prediction, latents, timesteps, noise)
    weight = torch.ones_like(terms) if row_weight is None else row_weight.to(terms.dtype)
    share = one_over(weight.sum()) if mean else 1.0
    loss = weighted(terms, weight).sum() * share
    if gradient_dtype is None:
        return loss, prediction.new_empty(0)
    return loss, weighted(gradient, (weight * share).unsqueeze(-1)).to(gradient_dtype)


def reference_rows(
    prediction: Tensor, latents: Tensor, timesteps: Tensor, noise: Noise, row_weight: Tensor | None
) -> Tensor:
    """As `launch_rows`, in plain torch."""
    terms, _ = reference_terms(prediction, latents, timesteps, noise)
    return terms if row_weight is None else weighted(terms, row_weight.to(terms.dtype))


def reference_gradient(prediction: Tensor, latents: Tensor, timesteps: Tensor, noise: Noise, factor: Tensor) -> Tensor:
    """As `launch_gradient`, in plain torch."""
    _, gradient = reference_terms(prediction, latents, timesteps, noise)
    return weighted(gradient, factor.to(gradient.dtype).unsqueeze(-1)).to(prediction.dtype)


# Registration


def _check_steps(timesteps: Tensor) -> None:
    """Raises ValueError for a step outside 0..999 on the CPU. On a GPU the host would have to wait; there such rows
    become NaN.
    """
    if timesteps.device.type == "cpu" and timesteps.numel():
        values = timesteps.numpy()
        if values.min() < 0 or values.max() >= STEPS:
            raise ValueError(f"timesteps: expected 0..{STEPS - 1}, got {values.min()}..{values.max()}")


@torch_op("mar_noise")
def _noise(latents: Tensor, timesteps: Tensor, noise: Tensor | None, seed: int, dtype: torch.dtype) -> Tensor:
    _check_steps(timesteps)
    if runs_triton(latents, noise):
        return launch_noise(latents, timesteps, Noise(noise, seed), schedule(latents.device), dtype)
    return reference_noise(latents, timesteps, Noise(noise, seed), dtype)


@_noise.register_fake
def _(latents, timesteps, noise, seed, dtype):
    return latents.new_empty(tuple(latents.shape), dtype=dtype)


@torch_op("mar_diffusion_loss")
def _loss(
    prediction: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    noise: Tensor | None,
    seed: int,
    row_weight: Tensor | None,
    mean: bool,
    gradient_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    _check_steps(timesteps)
    if runs_triton(prediction, latents, noise, row_weight):
        table = schedule(prediction.device)
        return launch_loss(prediction, latents, timesteps, Noise(noise, seed), table, row_weight, mean, gradient_dtype)
    return reference_loss(prediction, latents, timesteps, Noise(noise, seed), row_weight, mean, gradient_dtype)


@_loss.register_fake
def _(prediction, latents, timesteps, noise, seed, row_weight, mean, gradient_dtype):
    size = 0 if gradient_dtype is None else tuple(prediction.shape)
    loss = prediction.new_empty((), dtype=_wide(prediction, latents, noise))
    return loss, prediction.new_empty(size, dtype=gradient_dtype or prediction.dtype)


@torch_op("mar_diffusion_loss_rows")
def _rows(
    prediction: Tensor, latents: Tensor, timesteps: Tensor, noise: Tensor | None, seed: int, row_weight: Tensor | None
) -> Tensor:
    _check_steps(timesteps)
    if runs_triton(prediction, latents, noise, row_weight):
        return launch_rows(prediction, latents, timesteps, Noise(noise, seed), schedule(prediction.device), row_weight)
    return reference_rows(prediction, latents, timesteps, Noise(noise, seed), row_weight)


@_rows.register_fake
def _(prediction, latents, timesteps, noise, seed, row_weight):
    return prediction.new_empty(prediction.shape[0], dtype=_wide(prediction, latents, noise))


@torch_op("mar_diffusion_loss_backward")
def _gradient(
    prediction: Tensor, latents: Tensor, timesteps: Tensor, noise: Tensor | None, seed: int, factor: Tensor
) -> Tensor:
    if runs_triton(prediction, latents, noise, factor):
        return launch_gradient(prediction, latents, timesteps, Noise(noise, seed), schedule(prediction.device), factor)
    return reference_gradient(prediction, latents, timesteps, Noise(noise, seed), factor)


@_gradient.register_fake
def _(prediction, latents, timesteps, noise, seed, factor):
    return prediction.new_empty(tuple(prediction.shape))


def _remember(ctx, prediction, latents, timesteps, noise, seed, row_weight) -> None:
    ctx.save_for_backward(prediction, latents, timesteps, noise, row_weight)
    ctx.seed = seed


def _expect_first_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("mar_diffusion_loss has no second derivative (create_graph=True)")


def _loss_setup(ctx, inputs, output):
    *arguments, ctx.mean, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else torch would fill a tensor of zeros for it
    _remember(ctx, *arguments)
    # Not among the saved tensors: those must not be written to. Detached: an output in ctx would keep itself alive.
    ctx.gradient = output[1].detach()


def _loss_vjp(ctx, upstream, _):
    if upstream is None or not ctx.needs_input_grad[0]:
        return (None,) * 8
    _expect_first_derivative()
    prediction, latents, timesteps, noise, row_weight = ctx.saved_tensors  # once: checkpointing gives each out one time
    gradient, ctx.gradient = ctx.gradient, None
    if gradient is None:  # handed out by an earlier backward pass
        factor = row_factors(upstream, row_weight, prediction, ctx.mean)
        gradient = _gradient(prediction, latents, timesteps, noise, ctx.seed, factor)
    elif type(gradient) is not Tensor or gradient.dtype != prediction.dtype:  # traced, or to be cast anyway
        gradient = (gradient * upstream).to(prediction.dtype)
    else:
        scale_in_place(gradient, upstream)
    return gradient, *(None,) * 7


_loss.register_autograd(_loss_vjp, setup_context=_loss_setup)


def _rows_setup(ctx, inputs, output):
    _remember(ctx, *inputs)


def _rows_vjp(ctx, upstream):
    prediction, latents, timesteps, noise, row_weight = ctx.saved_tensors
    gradient = None
    if ctx.needs_input_grad[0]:
        _expect_first_derivative()
        factor = upstream if row_weight is None else upstream * row_weight.to(upstream.dtype)
        gradient = _gradient(prediction, latents, timesteps, noise, ctx.seed, factor)
    return gradient, *(None,) * 5


_rows.register_autograd(_rows_vjp, setup_context=_rows_setup)


# Public functions


def _check(latents: Tensor, timesteps: Tensor, noise: Tensor | None, seed: int | None) -> None:
    expect_tensors(latents=latents, timesteps=timesteps)
    expect(latents.dim() == 2, "latents", "[N, C]", latents.shape)
    expect_shape("timesteps", timesteps, len(latents))
    expect(timesteps.dtype in (torch.int64, torch.int32), "timesteps", "int64", timesteps.dtype)
    expect(timesteps.device == latents.device, "timesteps", f"a tensor on {latents.device}", timesteps.device)
    expect_noise(latents, noise, seed)
    expect_floating(latents.device, latents=latents, noise=noise)
    expect_no_gradient(latents=latents, noise=noise)


def mar_noise(latents: Tensor, timesteps: Tensor, *, seed: int | None = None, noise: Tensor | None = None) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps.

    Args:
        latents: [N, C], x0, any floating dtype.
        timesteps: [N] int64 in 0..999. On the CPU others are refused; on a GPU their rows become NaN, without a sync.
        seed: 0 <= seed < 2^63, of the noise that is regenerated in the loss (noise.py); or
        noise: [N, C]. Exactly one of the two.

    Returns:
        [N, C] fp32 (fp64 for fp64 latents or noise); under autocast in its dtype, to which the product that consumes
        x_t would cast it anyway. No gradient.

    Raises:
        ValueError: a wrong shape, dtype, device, step or seed; the message starts with the argument's name.
    """
    _check(latents, timesteps, noise, seed)
    dtype = _wide(latents, noise)
    if dtype == torch.float32:
        dtype = autocast_dtype(latents.device) or dtype
    return _noise(latents, timesteps, noise, seed or 0, dtype)


def mar_diffusion_loss(
    prediction: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    *,
    seed: int | None = None,
    noise: Tensor | None = None,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean over C of (eps - eps_hat)^2 plus the variational bound for nu, per row, then reduced over rows.

    Args:
        prediction: [N, 2C] = [eps_hat ; nu]; everything is formed in fp32 (fp64 for fp64 inputs).
        latents: [N, C]; read only in rows of step 0.
        timesteps: [N] int64 in 0..999, as in `mar_noise`.
        seed: that of `mar_noise`; or
        noise: [N, C]. Exactly one of the two.
        row_weight: [N], any real dtype, or None for ones; it gets no gradient. Rows of weight 0 contribute nothing.
        reduction: "none" = w·l [N], "sum" = sum of w·l, "mean" = sum of w·l / sum of w, or 0 if that sum is 0.

    Returns:
        fp32, or fp64 for fp64 inputs. Gradient for prediction.

    Raises:
        ValueError: a wrong shape, dtype, device, step, seed or reduction; the message starts with the argument's name.
    """
    expect_tensors(prediction=prediction)
    _check(latents, timesteps, noise, seed)
    rows, channels = latents.shape
    expect_shape("prediction", prediction, rows, 2 * channels)
    row_weight = checked_row_weight(row_weight, rows, latents.device)
    expect_floating(latents.device, prediction=prediction)
    expect_no_gradient(row_weight=row_weight)
    expect_reduction(reduction)
    arguments = (prediction, latents, timesteps, noise, seed or 0, row_weight)
    if reduction == "none":
        return _rows(*arguments)
    # Formed here in the prediction's dtype, unless fp16 could lose it before a loss scale arrives.
    dtype = None
    if torch.is_grad_enabled() and prediction.requires_grad:
        dtype = torch.float32 if prediction.dtype == torch.float16 else prediction.dtype
    return _loss(*arguments, reduction == "mean", dtype)[0]
