"""RMSNorm with the weight of one model's layer."""

import torch
from torch import Tensor, nn

from reca_fast.kernels import rms_norm


class RMSNorm(nn.Module):
    """Division of each row by its root mean square, then a weight per column (`reca_fast.kernels.rms_norm`)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed: Tensor = rms_norm(hidden_states, self.weight, eps=self.eps)
        return normed
