"""A depthwise 3 x 3 convolution of pictures that lie as tokens, as one operation of torch.

torch's convolution wants [pictures, C, rows, columns], a permuted view of tokens [pictures, rows * columns, C]. A block
that is compiled for every size would keep that view for its backward pass, and Inductor cannot order strides that it
does not know (`cannot determine truth value of Relational`). So the view is made inside the operation, and what a graph
sees are tokens.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

BACKWARD = {
    "stride": [1, 1],
    "padding": [1, 1],
    "dilation": [1, 1],
    "transposed": False,
    "output_padding": [0, 0],
}


def depthwise_conv(x: Tensor, conv: nn.Conv2d, rows: int, columns: int) -> Tensor:
    """The same as `conv` of the pictures that the tokens are, with zeros around each.

    Args:
        x: [pictures, rows * columns, C], pictures row by row.
        conv: of 3 x 3, padded by 1, with a bias, each of its C channels for itself. Autocast gives both its dtype.

    Returns:
        [pictures, rows * columns, C], contiguous.
    """
    given = [x, conv.weight, conv.get_parameter("bias")]
    if torch.is_autocast_enabled(x.device.type):
        given = [each.to(torch.get_autocast_dtype(x.device.type)) for each in given]
    out: Tensor = _conv(*given, rows, columns)
    return out


def _pictures(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """[pictures, C, rows, columns], channels last, of the same memory."""
    pictures: Tensor = tokens.unflatten(1, (rows, columns))
    return pictures.permute(0, 3, 1, 2)


def _tokens(pictures: Tensor) -> Tensor:
    """The other way round; of the same memory where channels are last in it."""
    return pictures.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


@custom_op("reca_fast::sana_depthwise_conv", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int) -> Tensor:
    return _tokens(F.conv2d(_pictures(x, rows, columns), weight, bias, padding=1, groups=len(weight)))


@custom_op("reca_fast::sana_depthwise_conv_dgrad", mutates_args=())
def _dgrad(grad: Tensor, x: Tensor, weight: Tensor, rows: int, columns: int) -> Tensor:
    return _tokens(_backward(grad, x, weight, rows, columns, [True, False, False])[0])


@custom_op("reca_fast::sana_depthwise_conv_wgrad", mutates_args=())
def _wgrad(grad: Tensor, x: Tensor, weight: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    _, of_weight, of_bias = _backward(grad, x, weight, rows, columns, [False, True, True])
    return of_weight.contiguous(), of_bias


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, rows: int, columns: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    pictures = _pictures(grad, rows, columns), _pictures(x, rows, columns)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        *(*pictures, weight, [len(weight)]), **BACKWARD, groups=len(weight), output_mask=wanted
    )
    return found


@_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int) -> Tensor:
    return x.new_empty(x.shape)


@_dgrad.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, rows: int, columns: int) -> Tensor:
    return x.new_empty(x.shape)


@_wgrad.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), weight.new_empty(len(weight))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int], output: Tensor) -> None:
    x, weight, _, ctx.rows, ctx.columns = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    given = grad, *ctx.saved_tensors, ctx.rows, ctx.columns
    of_x = _dgrad(*given) if ctx.needs_input_grad[0] else None
    of_weight, of_bias = _wgrad(*given) if any(ctx.needs_input_grad[1:3]) else (None, None)
    return of_x, of_weight, of_bias, None, None


_conv.register_autograd(_gradients, setup_context=_keep)


def _flops(first: Sequence[int], *_: Any, **__: Any) -> int:
    """9 multiply-adds for each number: of the result, of the gradient of x, or of that which the weight's adds up."""
    return 18 * prod(first)


for _name in ("", "_dgrad", "_wgrad"):
    register_flop_formula(getattr(torch.ops.reca_fast, f"sana_depthwise_conv{_name}"))(_flops)
