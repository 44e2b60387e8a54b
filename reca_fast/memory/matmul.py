"""Matrix products of trained weights in eight bits."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from reca_fast.config import Matmul
from reca_fast.errors import UserError
from reca_fast.extras import library

CAPABLE = {
    "fp8": ((8, 9), "8.9 (Ada, as an RTX 4090; Hopper; Blackwell)"),
    "int8": ((7, 5), "7.5 (Turing, as an RTX 2080)"),
}
"""kind -> the oldest compute capability with such tensor cores, and its name."""

FEWEST_ROWS = 17
"""cuBLAS multiplies int8 matrices with at least this many rows."""


def convert_matmuls(blocks: Sequence[nn.Module], kind: Matmul, device: torch.device) -> None:
    """Compute the products of the blocks' trained linear layers in 8 bits, with scales that follow the numbers.

    `int8` rounds both factors of the forward product and of the input's gradient to int8, each row (column) with a
    scale of its own; the weight's gradient, a sum over all tokens that small errors would add up in, keeps the dtype of
    the arithmetic. `fp8` is torchao's training in float8 with one scale for each tensor: all three products. Weights,
    gradients and the optimizer keep their dtypes, and parameters their names. On a CPU, `fp8` is emulated.

    Price: gradients with a relative error of about 2 % (int8) and 10 % (fp8), for products of up to twice the speed.
    The rounding itself is many small operations, which only torch.compile joins: without `memory.compile` a step may
    become slower than it was. Frozen layers stay as they are: in BAGEL they see a fifteenth of the tokens, for which
    rounding their weights costs more than the products save.

    Args:
        blocks: as the model gives them, before compilation and sharding.
        kind: what to compute in; "plain" does nothing.
        device: on which the model will run.

    Raises:
        UserError: the device cannot multiply such numbers, torchao is missing, or no layer is trained in the blocks.
    """
    if kind == "plain":
        return
    oldest, name = CAPABLE[kind]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < oldest:
        raise UserError(
            f"memory.matmul={kind} needs a GPU of compute capability {name} or newer, and this is a "
            f"{torch.cuda.get_device_name(device)}; set --memory.matmul plain."
        )
    chosen = [each for block in blocks for each in _trained_layers(block)]
    if not chosen:
        raise UserError(
            f"memory.matmul={kind} is for trained linear layers whose sizes are multiples of 16, and the model's "
            "blocks have none; set --memory.matmul plain."
        )
    if kind == "int8":
        for layer in chosen:
            layer.__class__ = Int8Linear
    else:
        _to_float8(blocks, {id(layer) for layer in chosen}, device)


def _trained_layers(block: nn.Module) -> list[nn.Linear]:
    """Those that tensor cores can take. A kind of layer of its own, such as an adapter's, stays as it is."""
    layers = [module for module in block.modules() if type(module) is nn.Linear and module.weight.requires_grad]
    return [each for each in layers if each.in_features % 16 == 0 and each.out_features % 16 == 0]


def _to_float8(blocks: Sequence[nn.Module], chosen: set[int], device: torch.device) -> None:
    library("torchao", "memory.matmul=fp8")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.float8_linear import Float8Linear

    # Packs have any number of rows, and the weight's gradient is a sum over them: without padding it would have to be
    # a multiple of 16.
    config = Float8LinearConfig(emulate=device.type == "cpu", pad_inner_dim=True)
    for block in blocks:
        convert_to_float8_training(block, module_filter_fn=lambda module, _: id(module) in chosen, config=config)
        for layer in block.modules():
            if isinstance(layer, Float8Linear) and layer.bias is None:
                # Its output is a view that autograd lets nobody write to, and models add the residual stream in place.
                layer.register_forward_hook(_copied)


def _copied(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.clone()


class Int8Linear(nn.Linear):
    """A linear layer that multiplies in int8, apart from its weight's gradient."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out], in autocast's dtype where that is on, else in that of `input`."""
        rows = input.reshape(-1, input.shape[-1])
        if len(rows) < FEWEST_ROWS:
            return F.linear(input, self.weight, self.bias)
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        product: Tensor = _Int8Product.apply(rows.to(dtype), self.weight)  # type: ignore[no-untyped-call]
        out = product.view(*input.shape[:-1], -1)
        return out if self.bias is None else out + self.bias.to(dtype)


class _Int8Product(torch.autograd.Function):
    """x [N, in] and weight [out, in] -> x @ weight.T [N, out] in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        grad_x = _multiply(grad, weight.t(), x.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = (grad.t() @ x).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


def _multiply(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a [M, K] @ b [N, K].T, each row of both rounded to int8 by itself. Sums are exact, in int32."""
    (a8, a_scale), (b8, b_scale) = _round_rows(a), _round_rows(b)
    return (torch._int_mm(a8, b8.t()) * a_scale * b_scale.t()).to(dtype)


def _round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] -> int8 [M, K], contiguous, and fp32 [M, 1], whose product comes closest to x. A row that holds inf or NaN
    has that scale, so the step is noticed and skipped as without rounding.
    """
    scale = x.abs().amax(1, keepdim=True).float() / 127
    rounded = (x / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    return rounded.contiguous(), scale


if torch.ops.aten._int_mm not in flop_registry:

    @register_flop_formula(torch.ops.aten._int_mm)
    def _int_mm_flops(a: Any, b: Any, out_shape: Any = None, **_: Any) -> int:
        return int(2 * a[0] * a[1] * b[1])
