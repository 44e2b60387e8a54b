"""silu(gate) * up, keeping only its two inputs for the backward pass (the stock expression keeps silu(gate) as
well).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up: [..., I] of one dtype -> silu(gate) * up, [..., I]."""
    if gate.shape != up.shape:
        raise ValueError(f"up: expected the shape of gate, {list(gate.shape)}, got {list(up.shape)}")
    return _SwiGLU.apply(gate, up)
