"""LayerNorm with weight and bias of one model's layer."""

from typing import Any

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


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm whose result is fp32 (or wider), as autocast gives it on a GPU. For the backward pass it keeps its
    input as narrow as it came, where autocast would keep a wide copy.

    Args:
        width: numbers in a row.
        eps: added to the variance.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        normed: Tensor = _Widened.apply(x, self.weight.to(wide), self.bias.to(wide), self.eps)  # type: ignore[no-untyped-call]
        return normed


class _Widened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x.to(weight.dtype), weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        of_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
            gradients[0], x.to(weight.dtype), weight.shape, mean, rstd, weight, bias, needed
        )
        return of_x.to(x.dtype) if needed[0] else None, of_weight, of_bias, None
