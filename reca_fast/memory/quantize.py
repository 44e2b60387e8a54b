"""Frozen linear layers kept in 8 or 4 bits, and widened for the length of one matrix product.

A quantised layer holds plain tensors, which are parameters without gradient: `data` and `scale` (and the layer's bias,
in the dtype of the arithmetic). What moves or counts a block's frozen parameters moves and counts them.

    int8   data int8 [out, in], scale fp32 [out]: each row of the weight is data * scale
    nf4    data uint8 [out, in / 2], scale fp32 [ceil(out * in / 64)]: 4-bit codes of the 16 quantiles of a normal
           distribution, and the largest absolute value of every 64 numbers (the layout of bitsandbytes)

The narrow numbers take no part in training: what is trained is computed with the widened weight, in both passes.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reca_fast.config.memory import Frozen
from reca_fast.extras import library
from reca_fast.models.files.wrapped import PackedWeight

NF4_BLOCK = 64
"""Numbers that share one scale."""

Widen = Callable[..., Tensor]
"""(dtype, *packed tensors) -> weight [out, in] in that dtype."""


class _Product(torch.autograd.Function):
    """x [..., in] times the transpose of a packed weight. The weight is widened again in the backward pass, so that
    nothing wide is kept in between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, widen: Widen, *packed: Tensor) -> Tensor:
        ctx.widen = widen
        ctx.save_for_backward(*packed)
        return x @ widen(x.dtype, *packed).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        packed = ctx.saved_tensors
        return gradient @ ctx.widen(gradient.dtype, *packed), None, *(None for _ in packed)


def _product(x: Tensor, widen: Widen, *packed: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or not x.requires_grad:
        return x @ widen(x.dtype, *packed).T
    out: Tensor = _Product.apply(x, widen, *packed)  # type: ignore[no-untyped-call]
    return out


class QuantizedLinear(PackedWeight, nn.Linear):
    """A frozen linear layer whose weight is packed. `weight` is computed whenever it is asked for.

    Args:
        layer: the linear layer that it stands for, on the meta device.
    """

    PACKED: ClassVar[tuple[str, ...]] = ("data", "scale")

    data: nn.Parameter
    scale: nn.Parameter

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.pack(torch.empty(self.weight_shape, device="meta"))
        self.register_parameter("bias", layer.bias)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    @torch.no_grad()
    def pack(self, weight: Tensor) -> None:
        for name, tensor in zip(self.PACKED, self.quantized(weight.detach()), strict=True):
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))

    @property
    @abstractmethod
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as it is computed with, fp32 [out, in]."""

    @staticmethod
    @abstractmethod
    def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
        """`data` and `scale` of a weight [out, in]."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x [..., in] in the dtype of the arithmetic -> a new tensor [..., out], without the bias."""

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        out = self.product(x)
        return out if self.bias is None else out.add_(self.bias)


class Int8Linear(QuantizedLinear):
    """A weight of 8 bits with a scale for each row, which acts on the product: the narrow numbers are exact in bf16."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.data * self.scale[:, None]

    @staticmethod
    def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
        wide = weight.float()
        scale = wide.abs().amax(dim=1) / 127
        return (wide / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_().to(torch.int8), scale

    def product(self, x: Tensor) -> Tensor:
        return _product(x, _widen_int8, self.data).mul_(self.scale)


class NF4Linear(QuantizedLinear):
    """A weight of 4 bits and half a bit for its scales, by bitsandbytes.

    Raises:
        UserError: bitsandbytes cannot be imported.
    """

    def __init__(self, layer: nn.Linear) -> None:
        library("bitsandbytes", "memory.frozen=nf4")  # it registers the operations below
        super().__init__(layer)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return _widen_nf4(torch.float32, self.data, self.scale)

    @staticmethod
    def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = weight.shape
        if weight.is_meta:  # bitsandbytes has no kernel for it
            scales = -(-weight.numel() // NF4_BLOCK)
            return weight.new_empty(rows, columns // 2, dtype=torch.uint8), weight.new_empty(scales)
        data, scale = torch.ops.bitsandbytes.quantize_4bit(weight.contiguous(), NF4_BLOCK, "nf4", torch.uint8)
        return data.view(rows, columns // 2), scale

    def product(self, x: Tensor) -> Tensor:
        return _product(x, _widen_nf4, self.data, self.scale)


def _widen_int8(dtype: torch.dtype, data: Tensor) -> Tensor:
    return data.to(dtype)


def _widen_nf4(dtype: torch.dtype, data: Tensor, scale: Tensor) -> Tensor:
    # As one row: bitsandbytes 0.50 on a CPU reads wrong scales where rows are no multiple of a block long.
    flat: Tensor = torch.ops.bitsandbytes.dequantize_4bit(data, scale, NF4_BLOCK, "nf4", [2 * data.numel()], dtype)
    return flat.view(data.shape[0], 2 * data.shape[1])


KINDS: dict[Frozen, type[QuantizedLinear]] = {"int8": Int8Linear, "nf4": NF4Linear}


def quantize(blocks: Sequence[nn.Module], kind: Frozen) -> None:
    """Let the frozen linear layers of the blocks keep their weights in 8 or 4 bits. Weights are quantised one by one
    while a module is filled, each on its device.

    Norms, biases and embeddings stay as they are, and so does everything outside of the blocks.

    Price: int8 is 0.6 % away from the weights (root mean square), nf4 9 %; each product widens its weight first, once
    in each pass.

    Excludes: layers with an odd number of inputs, which nf4 leaves as they are.

    Args:
        blocks: on the meta device.
        kind: compute, which changes nothing, int8 or nf4.

    Raises:
        UserError: nf4 without bitsandbytes.
    """
    if kind == "compute":
        return
    for block in blocks:
        for parent, name, layer in list(_frozen_linears(block)):
            if kind == "int8" or layer.in_features % 2 == 0:
                setattr(parent, name, KINDS[kind](layer))


def packed_parameters(module: nn.Module) -> set[nn.Parameter]:
    """The tensors that the quantised layers of a module keep their weights in."""
    layers = (part for part in module.modules() if isinstance(part, QuantizedLinear))
    return {layer.get_parameter(name) for layer in layers for name in layer.PACKED}


def _frozen_linears(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in block.modules():
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear and not layer.weight.requires_grad:
                yield parent, name, layer
