"""silu(gate) * up, keeping only its two inputs for the backward pass (the stock expression keeps silu(gate) as well)."""

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
        sigmoid = torch.sigmoid(gate)
        silu = sigmoid * gate
        grad_up = grad * silu
        # d silu = sigmoid * (1 + gate * (1 - sigmoid)) = sigmoid + silu * (1 - sigmoid)
        grad_gate = (sigmoid + silu * (1 - sigmoid)).mul_(grad).mul_(up)
        return grad_gate, grad_up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up: [..., I] of one dtype -> silu(gate) * up, [..., I]."""
    if gate.shape != up.shape:
        raise ValueError(f"up: expected the shape of gate, {list(gate.shape)}, got {list(up.shape)}")
    return _SwiGLU.apply(gate, up)
