"""Flow matching: the point on the path from data to noise, and the squared velocity error there.

    x_t = (1 - t) x0 + t eps              loss of a token = mean over C of (prediction - (eps - x0))^2

latents (x0), noise (eps), prediction and x_t are [T, C]; timesteps (t) and row_weight are [T]; all are bf16, fp16, fp32
or fp64. Any row stride is fine; an inner stride other than 1 costs a copy. Either `noise` is given, or `seed`: then the
noise is computed wherever it is needed (common/noise.py), the same in both functions, and never stored.

`flow_interpolate` is one launch that reads x0 and t and writes x_t. It keeps nothing but t for the backward pass.

`flow_matching_loss`, reduced to a number, is one launch. It also writes the finished gradient of `prediction`, if one
is wanted, since everything for it is in registers. Programs leave partial sums, and the last one to arrive adds them in
a fixed order, so the result is deterministic. A weighted mean needs one tiny launch before, for the sum of the weights.

The backward pass multiplies that gradient, in place, with the gradient of the loss, by a kernel that reads this number
on the device and returns at once when it is 1: no traffic, and the host does not wait. Arguments are kept for a second
backward pass, which computes the gradient anew, so that a gradient that was handed out never changes. With reduction
"none" the gradient is computed in the backward pass.

In eager torch this is 37 kernels and 284 MB for 8 x 4096 tokens of 64 channels; here it is 3 kernels and 30 MB (x_t in
bf16, a gradient of 1 for the loss). Neither Liger nor torch has it.
"""

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
from .kernels import (
    launch_gradient,
    launch_interpolate,
    launch_interpolate_backward,
    launch_loss,
    launch_rows,
)


def reference_interpolate(latents: Tensor, timesteps: Tensor, noise: Noise, dtype: torch.dtype) -> Tensor:
    """x_t in plain torch. With noise it is the authors' expression, rounding included; with a seed, fp32 or wider."""
    t = timesteps.unsqueeze(-1)
    if noise.given is None:
        latents, t = (x.to(_common(dtype, torch.float32)) for x in (latents, t))
    return ((1 - t) * latents + t * noise.like(latents)).to(dtype).contiguous()


def reference_interpolate_backward(
    upstream: Tensor, timesteps: Tensor, latents_dtype: torch.dtype | None, noise_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """As `launch_interpolate_backward`, in plain torch."""
    t = timesteps.unsqueeze(-1)
    empty = upstream.new_empty
    return (
        empty(0) if latents_dtype is None else ((1 - t) * upstream).to(latents_dtype).contiguous(),
        empty(0) if noise_dtype is None else (t * upstream).to(noise_dtype).contiguous(),
    )


def reference_error(prediction: Tensor, latents: Tensor, noise: Noise) -> Tensor:
    """prediction - (noise - latents), [T, C], in fp32 or wider: the error of the velocity."""
    wide = _wide(prediction, latents, noise.given)
    return prediction.to(wide) - (noise.like(latents).to(wide) - latents.to(wide))


def reference_loss(
    prediction: Tensor,
    latents: Tensor,
    noise: Noise,
    row_weight: Tensor | None,
    mean: bool,
    gradient_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """As `launch_loss`, in plain torch."""
    error = reference_error(prediction, latents, noise)
    per_token = error.square().mean(-1)
    weight = torch.ones_like(per_token) if row_weight is None else row_weight.to(error.dtype)
    share = one_over(weight.sum()) if mean else 1.0
    loss = weighted(per_token, weight).sum() * share
    if gradient_dtype is None:
        return loss, prediction.new_empty(0)
    return loss, weighted(error, (weight * share * 2 / error.shape[1])[:, None]).to(gradient_dtype).contiguous()


def reference_rows(prediction: Tensor, latents: Tensor, noise: Noise, row_weight: Tensor | None) -> Tensor:
    """As `launch_rows`, in plain torch."""
    per_token = reference_error(prediction, latents, noise).square().mean(-1)
    return per_token if row_weight is None else weighted(per_token, row_weight.to(per_token.dtype))


def reference_gradient(prediction: Tensor, latents: Tensor, noise: Noise, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """As `launch_gradient`, in plain torch."""
    error = reference_error(prediction, latents, noise)
    scale = (factor.to(error.dtype) * 2 / error.shape[1])[:, None]
    if torch.is_grad_enabled():  # differentiated by the factor too, also where that is 0
        return (error * scale).to(dtype).contiguous()
    return weighted(error, scale).to(dtype).contiguous()


def _common(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype that torch.promote_types gives for floating-point dtypes. That one goes through torch's dispatcher,
    like an operation, and costs as much.
    """
    return dtypes[0] if len(set(dtypes)) == 1 else max((*dtypes, torch.float32), key=lambda dtype: dtype.itemsize)


def _wide(*tensors: Tensor | None) -> torch.dtype:
    return _common(torch.float32, *(x.dtype for x in tensors if x is not None))


# Registration


@torch_op("flow_interpolate")
def _interpolate(latents: Tensor, timesteps: Tensor, noise: Tensor | None, seed: int, dtype: torch.dtype) -> Tensor:
    compute = launch_interpolate if runs_triton(latents, timesteps, noise) else reference_interpolate
    return compute(latents, timesteps, Noise(noise, seed), dtype)


@_interpolate.register_fake
def _(latents, timesteps, noise, seed, dtype):
    return latents.new_empty(tuple(latents.shape), dtype=dtype)


@torch_op("flow_interpolate_backward")
def _interpolate_backward(
    upstream: Tensor, timesteps: Tensor, latents_dtype: torch.dtype | None, noise_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    compute = launch_interpolate_backward if runs_triton(upstream, timesteps) else reference_interpolate_backward
    return compute(upstream, timesteps, latents_dtype, noise_dtype)


@_interpolate_backward.register_fake
def _(upstream, timesteps, latents_dtype, noise_dtype):
    return tuple(
        upstream.new_empty(0) if dtype is None else upstream.new_empty(tuple(upstream.shape), dtype=dtype)
        for dtype in (latents_dtype, noise_dtype)
    )


def _interpolate_setup(ctx, inputs, output):
    latents, timesteps, noise, _, _ = inputs
    ctx.save_for_backward(timesteps)
    ctx.dtypes = latents.dtype, None if noise is None else noise.dtype


def _interpolate_vjp(ctx, upstream):
    needs = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    wanted = [dtype if need else None for dtype, need in zip(ctx.dtypes, needs, strict=True)]
    compute = reference_interpolate_backward if torch.is_grad_enabled() else _interpolate_backward
    grads = compute(upstream, ctx.saved_tensors[0], *wanted)
    for_latents, for_noise = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return for_latents, None, for_noise, None, None


_interpolate.register_autograd(_interpolate_vjp, setup_context=_interpolate_setup)


@torch_op("flow_matching_loss")
def _loss(
    prediction: Tensor,
    latents: Tensor,
    noise: Tensor | None,
    seed: int,
    row_weight: Tensor | None,
    mean: bool,
    gradient_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    compute = launch_loss if runs_triton(prediction, latents, noise, row_weight) else reference_loss
    return compute(prediction, latents, Noise(noise, seed), row_weight, mean, gradient_dtype)


@_loss.register_fake
def _(prediction, latents, noise, seed, row_weight, mean, gradient_dtype):
    size = 0 if gradient_dtype is None else tuple(prediction.shape)
    loss = prediction.new_empty((), dtype=_wide(prediction, latents, noise))
    return loss, prediction.new_empty(size, dtype=gradient_dtype or prediction.dtype)


@torch_op("flow_matching_loss_rows")
def _rows(prediction: Tensor, latents: Tensor, noise: Tensor | None, seed: int, row_weight: Tensor | None) -> Tensor:
    compute = launch_rows if runs_triton(prediction, latents, noise, row_weight) else reference_rows
    return compute(prediction, latents, Noise(noise, seed), row_weight)


@_rows.register_fake
def _(prediction, latents, noise, seed, row_weight):
    return prediction.new_empty(prediction.shape[0], dtype=_wide(prediction, latents, noise))


@torch_op("flow_matching_loss_backward")
def _gradient(
    prediction: Tensor, latents: Tensor, noise: Tensor | None, seed: int, factor: Tensor, dtype: torch.dtype
) -> Tensor:
    compute = launch_gradient if runs_triton(prediction, latents, noise, factor) else reference_gradient
    return compute(prediction, latents, Noise(noise, seed), factor, dtype)


@_gradient.register_fake
def _(prediction, latents, noise, seed, factor, dtype):
    return prediction.new_empty(tuple(prediction.shape), dtype=dtype)


def _error_vjp(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of prediction, latents and noise for that of the error; None for those that want none."""
    needs = ctx.needs_input_grad
    return (
        gradient.to(ctx.dtypes[0]) if needs[0] else None,
        gradient.to(ctx.dtypes[1]) if needs[1] else None,
        gradient.neg().to(ctx.dtypes[2]) if needs[2] else None,
    )


def _recompute(ctx, prediction: Tensor, latents: Tensor, noise: Tensor | None, factor: Tensor) -> Tensor:
    """The gradient of the error, where factor [T] is the derivative of the total by the loss of each token."""
    dtype = prediction.dtype if ctx.needs_input_grad[:3] == (True, False, False) else factor.dtype
    if torch.is_grad_enabled():  # create_graph=True: to be differentiated again
        return reference_gradient(prediction, latents, Noise(noise, ctx.seed), factor, dtype)
    return _gradient(prediction, latents, noise, ctx.seed, factor, dtype)


def _remember(ctx, prediction, latents, noise, seed, row_weight) -> None:
    ctx.save_for_backward(prediction, latents, noise, row_weight)
    ctx.seed, ctx.dtypes = seed, (prediction.dtype, latents.dtype, None if noise is None else noise.dtype)


def _loss_setup(ctx, inputs, output):
    prediction, latents, noise, seed, row_weight, ctx.mean, _ = inputs
    gradient = output[1]
    ctx.mark_non_differentiable(gradient)
    ctx.set_materialize_grads(False)  # else torch would fill a tensor of zeros for it
    _remember(ctx, prediction, latents, noise, seed, row_weight)
    # Not among the saved tensors: those must not be written to. Detached: an output in ctx would keep itself alive.
    ctx.gradient = gradient.detach()


def _loss_vjp(ctx, upstream, _):
    if upstream is None:
        return (None,) * 7
    prediction, latents, noise, row_weight = ctx.saved_tensors  # once: checkpointing gives each out one time
    gradient, ctx.gradient = ctx.gradient, None
    if gradient is None or torch.is_grad_enabled():  # handed out by an earlier backward pass, or to be differentiated
        gradient = _recompute(ctx, prediction, latents, noise, row_factors(upstream, row_weight, prediction, ctx.mean))
    elif type(gradient) is not Tensor or gradient.dtype != prediction.dtype:  # traced, or to be cast anyway
        gradient = gradient * upstream
    else:
        scale_in_place(gradient, upstream)
    return *_error_vjp(ctx, gradient), None, None, None, None


_loss.register_autograd(_loss_vjp, setup_context=_loss_setup)


def _rows_setup(ctx, inputs, output):
    _remember(ctx, *inputs)


def _rows_vjp(ctx, upstream):
    prediction, latents, noise, row_weight = ctx.saved_tensors
    factor = upstream if row_weight is None else upstream * row_weight.to(upstream.dtype)
    gradient = _recompute(ctx, prediction, latents, noise, factor)
    return *_error_vjp(ctx, gradient), None, None


_rows.register_autograd(_rows_vjp, setup_context=_rows_setup)


# Public functions


def _check(latents: Tensor, timesteps: Tensor, noise: Tensor | None, seed: int | None) -> None:
    expect_tensors(latents=latents, timesteps=timesteps)
    expect(latents.dim() == 2, "latents", "[T, C]", latents.shape)
    expect_shape("timesteps", timesteps, len(latents))
    expect_noise(latents, noise, seed)
    expect_floating(latents.device, latents=latents, timesteps=timesteps, noise=noise)
    expect_no_gradient(timesteps=timesteps)


def flow_interpolate(
    latents: Tensor, timesteps: Tensor, *, seed: int | None = None, noise: Tensor | None = None
) -> Tensor:
    """x_t = (1 - t) x0 + t eps.

    Args:
        latents: [T, C], x0.
        timesteps: [T] in [0, 1], not checked; it gets no gradient.
        seed: 0 <= seed < 2^63, of the regenerated noise; or
        noise: [T, C]. Exactly one of the two.

    Returns:
        [T, C] in the arguments' common dtype; where that is fp32 and autocast is on, in autocast's dtype, to which
        the product that consumes x_t would cast it anyway. Gradients for latents and noise.

    Raises:
        ValueError: a wrong shape, dtype, device or seed; the message starts with the argument's name.
    """
    _check(latents, timesteps, noise, seed)
    dtype = _common(*(x.dtype for x in (latents, timesteps, noise) if x is not None))
    if dtype == torch.float32:
        dtype = autocast_dtype(latents.device) or dtype
    return _interpolate(latents, timesteps, noise, seed or 0, dtype)


def flow_matching_loss(
    prediction: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    *,
    seed: int | None = None,
    noise: Tensor | None = None,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean over C of (prediction - (eps - x0))^2 per token, then reduced over tokens.

    Args:
        prediction, latents: [T, C]; the error is formed in fp32 (fp64 for fp64 inputs).
        timesteps: [T], checked only: the velocity of a straight path does not depend on t.
        seed: that of `flow_interpolate`; or
        noise: [T, C]. Exactly one of the two.
        row_weight: [T], any real dtype, or None for ones; it gets no gradient. Tokens of weight 0 contribute nothing.
        reduction: "none" = w·l [T], "sum" = sum of w·l, "mean" = sum of w·l / sum of w, or 0 if that sum is 0.

    Returns:
        fp32, or fp64 for fp64 inputs. Gradients for prediction, latents and noise.

    Raises:
        ValueError: a wrong shape, dtype, device, seed or reduction; the message starts with the argument's name.
    """
    expect_tensors(prediction=prediction)
    _check(latents, timesteps, noise, seed)
    expect_shape("prediction", prediction, *latents.shape)
    row_weight = checked_row_weight(row_weight, len(latents), latents.device)
    expect_floating(latents.device, prediction=prediction)
    expect_no_gradient(row_weight=row_weight)
    expect_reduction(reduction)
    if reduction == "none":
        return _rows(prediction, latents, noise, seed or 0, row_weight)
    # Formed here in the prediction's dtype, unless fp16 could lose it before a loss scale arrives, or others need it.
    dtype = None
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (prediction, latents, noise)):
        alone = not latents.requires_grad and (noise is None or not noise.requires_grad)
        dtype = prediction.dtype if alone and prediction.dtype != torch.float16 else _wide(prediction, latents, noise)
    return _loss(prediction, latents, noise, seed or 0, row_weight, reduction == "mean", dtype)[0]
