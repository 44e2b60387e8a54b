"""Root-mean-square normalisation that keeps one number per row for the backward pass.

The usual formula leaves two fp32 copies of its input in the autograd graph. This one keeps the input, which the
residual stream holds anyway, and one over the norm of each row. Statistics are fp32; the normalised number is rounded
to the input's dtype BEFORE it is multiplied by the weight, as in Qwen2 and in the authors' code.

There is no kernel of ours: Liger's reads and writes every row once each way, which is the minimum. It computes on a GPU
when `liger_kernel` is installed and `use_kernels` does not say "reference". Inside torch.compile the plain formula
computes, which Inductor makes one kernel by itself.
"""

from importlib import import_module

import torch
from torch import Tensor

from ..common.arguments import expect_floating, expect_number, expect_tensors
from ..common.liger import RMSNormOfLiger, like_liger, use_liger
from ..common.own_memory import times


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the statistics of numbers of `dtype`: fp32 for everything narrower, fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def reciprocal_norm(x: Tensor, eps: float) -> Tensor:
    """One over the root mean square of each row of x [..., D]: [..., 1] in the statistics dtype."""
    wide = x.to(statistics_dtype(x.dtype))
    return torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., D] over its root mean square, in the dtype of x, and one over that, as `reciprocal_norm` gives it."""
    wide = x.to(statistics_dtype(x.dtype))
    rstd = reciprocal_norm(wide, eps)
    return (wide * rstd).to(x.dtype), rstd


def normalise_backward(grad: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of x [..., D], where `grad` is that of x * rstd, in the statistics dtype, and rstd is from
    `normalise`.
    """
    hat = x.to(grad.dtype) * rstd
    along = torch.linalg.vecdot(grad, hat).unsqueeze(-1).div_(x.shape[-1])
    return torch.addcmul(grad, hat, along, value=-1).mul_(rstd)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


class _RMSNorm(torch.autograd.Function):
    """Neither pass ends in a cast that changes nothing or, inside torch.compile, in an operation in place (see
    common/own_memory.py): torch 2.11 would lose the gradient without a word.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        hat, rstd = normalise(x, eps)
        ctx.save_for_backward(x, weight, rstd)
        return times(hat, weight) if weight.dtype == hat.dtype else (hat * weight).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, rstd = ctx.saved_tensors
        wide = grad.to(rstd.dtype)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            hat = x.to(rstd.dtype) * rstd
            grad_weight = _as(times(hat, wide).reshape(-1, x.shape[-1]).sum(0), weight.dtype)
        if ctx.needs_input_grad[0]:
            grad_x = _as(normalise_backward(wide * weight, x, rstd), x.dtype)
        return grad_x, grad_weight, None


def rms_norm(hidden_states: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """RMS-normalise the last dimension.

    Args:
        hidden_states: [..., D] with D > 0, any floating dtype.
        weight: [D], any floating dtype.
        eps: added to the mean square, >= 0.

    Returns:
        [..., D] in the dtype of `hidden_states`.

    Raises:
        ValueError: a shape, dtype, device or number that does not fit; the message starts with the argument's name.
    """
    expect_tensors(hidden_states=hidden_states, weight=weight)
    expect_number("eps", eps)
    if hidden_states.dim() == 0 or hidden_states.shape[-1] == 0:
        raise ValueError(f"hidden_states: expected [..., D] with D > 0, got {list(hidden_states.shape)}")
    if weight.shape != hidden_states.shape[-1:]:
        raise ValueError(f"weight: expected shape [{hidden_states.shape[-1]}], got {list(weight.shape)}")
    expect_floating(hidden_states.device, hidden_states=hidden_states, weight=weight)
    if use_liger(hidden_states, weight):
        return _liger(hidden_states, weight, eps)
    if like_liger(hidden_states):
        return RMSNormOfLiger.apply(hidden_states, weight)
    return _RMSNorm.apply(hidden_states, weight, eps)


def _liger(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    # Not in place: the gradient that arrives belongs to the residual stream too.
    return import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction.apply(
        hidden_states, weight, eps, 0.0, "llama", False
    )
