"""An MLP in chunks of rows: its wide inner rows are there for a chunk at a time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

RowWise = Callable[[Tensor], Tensor]
"""[N, D] -> [N, E], each row from its own row alone."""


def chunk_mlps(blocks: Sequence[nn.Module], rows: int) -> None:
    """Run each block's `mlp` (a method or a submodule of the block or of its parts) on at most `rows` rows at a time.
    Nothing of its inside is kept: the backward pass computes it again, chunk by chunk. Gradients of weights are summed
    over the chunks in fp32.

    Price: an MLP's products run twice. Beside recomputation of whole blocks, which runs all of them twice but the last,
    that is the last product; with less recomputation it is more. Gradients are the same to rounding.

    Excludes: torch.compile, and an `mlp` that is not row by row.
    """
    for block in blocks:
        for part in block.modules():
            mlp = getattr(part, "mlp", None)
            if isinstance(mlp, nn.Module):
                mlp.forward = partial(_in_chunks, mlp.forward, mlp, rows)
            elif mlp is not None:
                part.mlp = partial(_in_chunks, mlp, part, rows)  # type: ignore[assignment]


def _in_chunks(mlp: RowWise, owner: nn.Module, rows: int, x: Tensor) -> Tensor:
    if len(x) <= rows:
        return mlp(x)
    weights = list(owner.parameters())
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))):
        return _forward(mlp, x, rows)
    # The input is saved before anything is computed: where the block runs again in the backward pass, nothing is left
    # to be saved then, and the products are not made in vain.
    held: Tensor = _Hold.apply(x)  # type: ignore[no-untyped-call]
    out: Tensor = _InChunks.apply(mlp, owner, rows, held.grad_fn, held, *weights)  # type: ignore[no-untyped-call]
    return out


def _chunks(x: Tensor, rows: int) -> Iterator[slice]:
    for begin in range(0, len(x), rows):
        yield slice(begin, begin + rows)


def _forward(mlp: RowWise, x: Tensor, rows: int) -> Tensor:
    out: Tensor | None = None
    for chunk in _chunks(x, rows):
        part = mlp(x[chunk])
        if out is None:
            out = part.new_empty(len(x), *part.shape[1:])
        out[chunk] = part
        del part
    assert out is not None
    return out


class _Hold(torch.autograd.Function):
    """Its input, saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _InChunks(torch.autograd.Function):
    """The MLP of what `holder`, the node of a `_Hold`, has saved. It saves nothing itself if there is one."""

    @staticmethod
    def forward(
        ctx: Any, mlp: RowWise, owner: nn.Module, rows: int, holder: Any, x: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.mlp, ctx.owner, ctx.rows, ctx.holder = mlp, owner, rows, holder
        if holder is None:
            ctx.save_for_backward(x)
        kind = x.device.type
        ctx.autocast = {"device_type": kind, "enabled": torch.is_autocast_enabled(kind), "cache_enabled": False}
        ctx.autocast["dtype"] = torch.get_autocast_dtype(kind)
        return _forward(mlp, x.detach(), rows)  # slices of x itself would ask for a gradient and have no graph

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = (ctx if ctx.holder is None else ctx.holder).saved_tensors
        weights = list(ctx.owner.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[4] else None
        sums: list[Tensor | None] = [None] * len(trained)
        for chunk in _chunks(x, ctx.rows):
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                leaf = x[chunk].detach().requires_grad_(grad_x is not None)
                part = leaf.view_as(leaf)  # no leaf itself: torch's FLOP counter hooks into modules' inputs
                out = ctx.mlp(part)
            wanted = ([part] if grad_x is not None else []) + trained
            found = list(torch.autograd.grad(out, wanted, grad[chunk], allow_unused=True))
            del out, part, leaf
            if grad_x is not None:
                grad_x[chunk] = found.pop(0)
            for number, more in enumerate(found):
                if more is not None:
                    before = sums[number]
                    sums[number] = _widened(more) if before is None else before.add_(more)
            del found
        totals = iter(sums)
        grads = []
        for weight in weights:
            total = next(totals) if weight.requires_grad else None
            grads.append(None if total is None else total.to(weight.dtype))
            del total
        return (None, None, None, None, grad_x, *grads)


def _widened(gradient: Tensor) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
