"""silu(gate) * up, keeping only its two inputs for the backward pass (the usual expression keeps silu(gate) as well).

There is no kernel of ours: Liger's reads and writes everything once each way, which is the minimum, because its
backward pass writes the gradients over gate and up. So it computes only where the caller gives them up
(`reuse_inputs=True`), on a GPU, when `liger_kernel` is installed and `use_kernels` does not say "reference".
"""

from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.arguments import expect_floating, expect_tensors
from ..common.liger import use_liger
from ..common.own_memory import times


class _SwiGLU(torch.autograd.Function):
    """Neither pass needs memory beyond its results, and with `reuse` the backward pass needs none at all (see
    common/own_memory.py for what differs inside torch.compile).
    """

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor, reuse: bool) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.reuse = reuse
        return times(F.silu(gate), up)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        if ctx.reuse and not torch.compiler.is_compiling():
            grad_gate = up.mul_(grad)
            torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
            return grad_gate, F.silu(gate, inplace=True).mul_(grad), None
        grad_gate = grad * up
        if torch.compiler.is_compiling():
            grad_gate = torch.ops.aten.silu_backward(grad_gate, gate)
        else:
            torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate, times(F.silu(gate), grad), None


def swiglu(gate: Tensor, up: Tensor, *, reuse_inputs: bool = False) -> Tensor:
    """silu(gate) * up.

    Args:
        gate, up: [..., I] of one floating dtype.
        reuse_inputs: the backward pass may overwrite gate and up. For projections that nobody else reads.

    Returns:
        [..., I].

    Raises:
        ValueError: a shape, dtype or device that does not fit; the message starts with the argument's name.
    """
    expect_tensors(gate=gate, up=up)
    if gate.shape != up.shape:
        raise ValueError(f"up: expected the shape of gate, {list(gate.shape)}, got {list(up.shape)}")
    expect_floating(gate.device, gate=gate, up=up)
    if gate.dtype != up.dtype:
        raise ValueError(f"up: expected the dtype of gate, {gate.dtype}, got {up.dtype}")
    if reuse_inputs and use_liger(gate, up):
        return _liger(gate, up)
    return _SwiGLU.apply(gate, up, reuse_inputs)


def _liger(gate: Tensor, up: Tensor) -> Tensor:
    return import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction.apply(gate, up)
