"""silu(gate) * up, keeping only its two inputs for the backward pass (the stock expression keeps silu(gate) as
well).

There is no kernel of ours: Liger's reads and writes everything once each way, which is the minimum, because its
backward pass writes the gradients over gate and up. So it runs only where the caller gives them up
(`reuse_inputs=True`), on a GPU, when `liger_kernel` can be imported and `use_kernels` does not say "reference".
"""

from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from .liger import use_liger


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = grad * up
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate, F.silu(gate).mul_(grad)


def swiglu(gate: Tensor, up: Tensor, *, reuse_inputs: bool = False) -> Tensor:
    """silu(gate) * up.

    Args:
        gate, up: [..., I] of one dtype.
        reuse_inputs: the backward pass may overwrite gate and up. For projections that nobody else reads.

    Returns:
        [..., I].
    """
    if gate.shape != up.shape:
        raise ValueError(f"up: expected the shape of gate, {list(gate.shape)}, got {list(up.shape)}")
    if reuse_inputs and use_liger(gate, up):
        return _liger(gate, up)
    return _SwiGLU.apply(gate, up)


def _liger(gate: Tensor, up: Tensor) -> Tensor:
    return import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction.apply(gate, up)
