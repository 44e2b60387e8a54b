"""LayerNorm with weight and bias of one model's layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose result has the dtype of its input, also under autocast. On a GPU autocast would make a wide copy
    of the input, keep it for the backward pass, and give a wide result, which every linear layer behind it casts anew.

    Args:
        width: numbers in a row.
        eps: added to the variance.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
