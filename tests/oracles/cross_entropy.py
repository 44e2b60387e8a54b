"""Losses of the fused head and cross-entropy by their definition, and the shapes that they are tried on."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reca_fast.kernels.fused_linear_cross_entropy.contract import fused_linear_cross_entropy

IGNORED = -100


CASES = {  # rows, ignored, dim, vocabulary, classes, smoothing, z, bias and weights, logits bytes per chunk
    "plain": (9, [0, 4, 5], 16, 101, None, 0.0, 0.0, False, 2**28),
    "everything, in chunks": (13, [1, 2, 12], 24, 203, (13, 150), 0.1, 1e-2, True, 2000),
    "one row": (1, [], 8, 64, None, 0.0, 1e-3, False, 1),
    "nothing ignored, in chunks": (6, [], 8, 70, (5, 6 + 63), 0.0, 0.0, True, 600),
    "one class": (3, [1], 8, 5, (2, 3), 0.5, 0.1, False, 2**28),
    "read twice": (3, [0], 16, 8300, None, 0.1, 1e-3, False, 2**28),
    "read twice, with bias": (2, [], 8, 8257, None, 0.0, 0.0, True, 2**28),
}


def formula(
    hidden_states, weight, labels, *, bias=None, row_weight=None, smoothing=0.0, z=0.0, classes=None, how="mean"
):
    """The definition, in plain torch and in the dtype of its arguments; losses in fp32 or wider."""
    start, stop = classes or (0, len(weight))
    logits = F.linear(hidden_states, weight[start:stop])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias[start:stop]
    valid = labels != IGNORED
    losses = F.cross_entropy(
        logits, torch.where(valid, labels - start, IGNORED), reduction="none", label_smoothing=smoothing
    )
    losses = losses + torch.where(valid, z * logits.logsumexp(-1).square(), 0)
    factor = valid.to(losses.dtype) if row_weight is None else torch.where(valid, row_weight, 0)
    if how == "none":
        return losses * factor
    return (losses * factor).sum() / (factor.sum() if how == "mean" else 1)


def make(name: str, dtype: torch.dtype, scale: float = 1.0) -> tuple[list[Any], Tensor, dict[str, Any], int]:
    rows, ignored, dim, vocabulary, classes, smoothing, z, more, chunk = CASES[name]
    draw = torch.Generator().manual_seed(len(name))
    start, stop = classes or (0, vocabulary)
    labels = torch.randint(start, stop, (rows,), generator=draw)
    labels[ignored] = IGNORED
    hidden = (scale * torch.randn(dim, rows, generator=draw)).to(dtype).t()  # not contiguous
    weight = torch.randn(vocabulary, dim, generator=draw).to(dtype)
    bias = torch.randn(vocabulary, generator=draw).to(dtype) if more else None
    row_weight = torch.rand(rows, generator=draw) if more else None
    return [hidden, weight, bias, row_weight], labels, {"smoothing": smoothing, "z": z, "classes": classes}, chunk


def ours(tensors, labels, settings, how, chunk=2**28) -> Tensor:
    return fused_linear_cross_entropy(
        tensors[0],
        tensors[1],
        labels,
        bias=tensors[2],
        row_weight=tensors[3],
        label_smoothing=settings["smoothing"],
        z_loss=settings["z"],
        vocab_range=settings["classes"],
        reduction=how,
        max_logits_bytes=chunk,
    )


def plain(tensors, labels, settings, how, chunk=0) -> Tensor:
    return formula(tensors[0], tensors[1], labels, bias=tensors[2], row_weight=tensors[3], how=how, **settings)


def run(function, tensors, labels, settings, how, chunk, dtype=None) -> list[Tensor]:
    """The loss, then the gradients of all tensors for an upstream gradient that is not 1."""
    leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]
    loss = function(leaves, labels, settings, how, chunk)
    upstream = torch.linspace(0.5, 1.5, max(1, loss.numel()), dtype=loss.dtype).view(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, [x for x in leaves if x is not None], upstream)]
