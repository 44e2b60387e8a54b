"""When Liger's kernels compute an operation: rms_norm and swiglu, for which Liger has the best there are."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .implementation import gpu_assumed, implementation


@cache
def liger_installed() -> bool:
    """Whether `liger_kernel` is installed. It is not imported here, for that takes seconds."""
    return find_spec("liger_kernel") is not None


def use_liger(*tensors: Tensor) -> bool:
    """Whether Liger's kernels are to compute on these tensors: they hold numbers on a GPU, kernels are chosen (see
    `implementation`), and Liger is installed. Never inside torch.compile, and never for fake tensors, which have no
    memory that a kernel could read.

    Raises ValueError when kernels are asked for that cannot run here.
    """
    first = tensors[0]
    if torch.compiler.is_compiling() or isinstance(first, FakeTensor):
        return False
    return implementation(*tensors) == "triton" and first.is_cuda and first.numel() > 0 and liger_installed()


def like_liger(first: Tensor) -> bool:
    """Whether Liger's kernels would compute on this fake tensor, were it on the GPU that is assumed (`assume_gpu`)."""
    return isinstance(first, FakeTensor) and gpu_assumed() and implementation(first) == "triton" and first.numel() > 0


class RMSNormOfLiger(torch.autograd.Function):
    """On fake tensors, the memory that Liger's RMSNorm takes: one number per row is kept beside the input."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, rstd)
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.mul(grad, x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None
