"""The passes of fused_linear_cross_entropy over chunks of rows: reference of the row kernel, products, which rows.

What is computed is told in fused_linear_cross_entropy.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..common.implementation import implementation
from ..common.reductions import one_over
from ..common.transfer import to_device
from .ragged_matmul import ragged_losses_and_gradients
from .row_kernels import launch_cross_entropy_rows

BLOCK = 2048  # rows of the gradient for hidden states that are formed at once

Needs = tuple[bool, bool, bool]
"""Which gradients to form: hidden_states, weight, bias."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def weight_gradient_dtype(hidden_states: Tensor, weight: Tensor) -> torch.dtype:
    """The weight's own, under autocast often wider than the products'; fp32 where either is fp16: see `forward`."""
    return torch.float32 if torch.float16 in (hidden_states.dtype, weight.dtype) else weight.dtype


class Passes(NamedTuple):
    """What `forward` makes."""

    total: Tensor  # [] weighted sum of the losses, times `inverse`
    losses: Tensor  # [N] without weights, 0 for ignored rows
    inverse: Tensor  # [] 1 / (sum of weights), or 1
    pending: Tensor  # [] what fp16 gradients have yet to be multiplied by; others are finished: [0]
    gradients: list[Tensor]  # of hidden states, of the range of weight and of bias


def reference_cross_entropy_rows(
    buffer: Tensor,
    classes: int,
    bias: Tensor | None,
    labels: Tensor,
    scale: Tensor | None,
    start: int,
    smoothing: float,
    z_loss: float,
) -> Tensor:
    """Losses of the logits in `buffer` [rows, width >= classes]; with `scale` it becomes their gradient."""
    logits = buffer[:, :classes].to(wide_dtype(buffer.dtype))
    if bias is not None:
        logits = logits + bias[:classes]
    target = labels - start
    inside = (target >= 0) & (target < classes)
    target = torch.where(inside, target, 0)[:, None]
    # Differences first: logsumexp alone would be rounded to the magnitude of the logits.
    top = logits.amax(-1)
    logits = logits.sub_(top[:, None])
    log_total = logits.logsumexp(-1)
    lse = top + log_total
    loss = log_total - (1 - smoothing) * logits.gather(1, target)[:, 0] + z_loss * lse.square()
    if smoothing:
        loss = loss - smoothing * logits.mean(-1)
    if scale is not None:
        gradient = logits.sub_(log_total[:, None]).exp_().mul_(1 + 2 * z_loss * lse[:, None])
        if smoothing:
            gradient -= smoothing / classes
        gradient.scatter_add_(1, target, gradient.new_full(target.shape, smoothing - 1))
        buffer[:, :classes] = gradient.mul_(torch.where(inside, scale, torch.nan)[:, None])
    return torch.where(inside, loss, torch.nan)


def _chunk(rows: int, row_bytes: int, max_bytes: int) -> int:
    """Rows per chunk: as equal as possible, of whole tiles where that fits."""
    most = max(1, max_bytes // row_bytes)
    size = -(-rows // -(-rows // most))
    return min(most, -(-size // 128) * 128) if size < rows else size


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in total's wider dtype."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        b = b.to(total.dtype)
        for part in range(0, len(a), BLOCK):  # no wide copy of all logits
            total[part : part + BLOCK].addmm_(a[part : part + BLOCK].to(total.dtype), b)


def _even(classes: int) -> int:
    """The classes that a 16-bit product takes at full speed: cuBLAS wants a multiple of 8 along every side. Show-o's
    58498 in one product took 2.8 times as long on an H200 as 58496 and the last two by themselves.
    """
    return classes // 8 * 8


def _multiply_into(logits: Tensor, x: Tensor, weight: Tensor) -> None:
    """logits [n, classes] = x @ weight^T."""
    even = _even(len(weight))
    for part in (slice(0, even), slice(even, len(weight))):
        if part.start < part.stop:
            torch.mm(x, weight[part].t(), out=logits[:, part])


def _multiply_back(logits: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """out [n, D] = logits @ weight."""
    even = _even(len(weight))
    torch.mm(logits[:, :even], weight[:even], out=out)
    if even < len(weight):
        torch.addmm(out, logits[:, even:], weight[even:], out=out)
    return out


def losses_and_gradients(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rows: Tensor | None,
    scale: Tensor,
    needs: Needs,
    weight_dtype: torch.dtype,
    start: int,
    smoothing: float,
    z_loss: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Library products around the row pass. weight and bias are those of the range.

    rows: [n], ascending ids of the rows that count, or None for all; labels, scale: [n].
    Returns losses [n] and the gradients [N, D], [classes, D], [classes]; of size 0 where not needed.
    """
    run = launch_cross_entropy_rows if implementation(hidden_states) == "triton" else reference_cross_entropy_rows
    (total, dim), classes, count = hidden_states.shape, len(weight), len(labels)
    width = -(-classes // 64) * 64
    empty, wide = hidden_states.new_empty, wide_dtype(hidden_states.dtype)
    chunk = _chunk(count, width * hidden_states.element_size(), max_bytes) if count else 0
    for_hidden = empty(total if needs[0] else 0, dim)
    # Several chunks add up in a wide dtype, and so does one whose sum leaves in a wider dtype than the products'.
    add_up = chunk < count or weight_dtype != weight.dtype
    for_weight = empty(classes if needs[1] else 0, dim, dtype=wide if add_up else weight_dtype)
    for_bias = hidden_states.new_zeros(classes if needs[2] else 0, dtype=wide)
    losses = empty(count, dtype=wide)
    if not count:
        return losses, for_hidden.zero_(), for_weight.zero_().to(weight_dtype), for_bias
    padded = None
    if bias is not None:
        padded = bias.new_zeros(width, dtype=wide)
        padded[:classes] = bias
    buffer = empty(chunk, width)
    if not buffer.is_cuda:
        # torch's 16-bit products on a CPU read beyond a row's classes, times 0: a stray NaN would stay.
        buffer[:, classes:] = 0
    # From the last chunk to the first: row i of the compact ones comes from row rows[i] >= i, so that gradients written
    # there never meet the gathered hidden states of chunks still to come.
    for first in reversed(range(0, count, chunk)):
        here = slice(first, min(first + chunk, count))
        size = here.stop - here.start
        if rows is None:
            x = hidden_states[here]
        elif needs[0]:
            x = torch.index_select(hidden_states, 0, rows[here], out=for_hidden[here])
        else:
            x = hidden_states.index_select(0, rows[here])
        logits = buffer[:size, :classes]
        _multiply_into(logits, x, weight)
        losses[here] = run(
            buffer[:size], classes, padded, labels[here], scale[here] if any(needs) else None, start, smoothing, z_loss
        )
        if needs[2]:
            for_bias += logits.sum(0, dtype=wide)
        if needs[1] and here.stop == count:
            if for_weight.dtype != x.dtype:
                _add_product(for_weight.zero_(), logits.t(), x)
            else:
                torch.mm(logits.t(), x, out=for_weight)
        elif needs[1]:
            _add_product(for_weight, logits.t(), x)
        if needs[0] and rows is None:
            _multiply_back(logits, weight, for_hidden[here])
        elif needs[0] and rows is not None:
            for block in range(0, size, BLOCK):
                part = slice(block, min(block + BLOCK, size))
                formed = _multiply_back(logits[part], weight, empty(part.stop - part.start, dim))
                for_hidden.index_copy_(0, rows[here][part], formed)
    del buffer, logits  # before the weight gradient is cast
    return losses, for_hidden, for_weight.to(weight_dtype), for_bias


def forward(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    factor: Tensor | None,
    mean: bool,
    needs: Needs,
    start: int,
    stop: int,
    ignore_index: int,
    smoothing: float,
    z_loss: float,
    max_bytes: int,
) -> Passes:
    """Losses, and gradients scaled by `factor` [N] and, for a mean, by one over its sum.

    In fp16 that would lose them before a loss scale arrives (divided by thousands of rows) or overflow (a sum over
    rows, large weights): rows are scaled by their share of the largest weight instead (rows of less than some
    1e-7 of it are lost), the weight's gradient stays in fp32, and the rest of the factor is `pending`.
    """
    device, wide, total = hidden_states.device, wide_dtype(hidden_states.dtype), len(labels)
    valid = labels != ignore_index
    on_host = labels.device.type == "cpu"
    rows: Tensor | None = None
    if on_host:
        rows = valid.nonzero()[:, 0]
        given = labels if len(rows) == total else labels[rows]
        if len(given) and (int(given.min()) < start or int(given.max()) >= stop):
            wrong = given[(given < start) | (given >= stop)][0]
            raise ValueError(
                f"labels: expected {start} <= label < {stop} or ignore_index={ignore_index}, got {int(wrong)}"
            )
        skipped = to_device((~valid).nonzero()[:, 0], device)
        given, rows = to_device(given, device), None if len(rows) == total else to_device(rows, device)
        weights = factor if factor is None or rows is None else factor.index_select(0, rows)
        if weights is None:
            weights = torch.ones((), dtype=wide, device=device).expand(len(given))
            inverse = hidden_states.new_full((), 1 / max(1, len(given)) if mean else 1.0, dtype=wide)
        else:
            inverse = one_over(weights.sum()) if mean else hidden_states.new_ones((), dtype=wide)
    else:
        given = torch.where(valid, labels, start)
        weights = valid.to(wide) if factor is None else torch.where(valid, factor, 0)
        inverse = one_over(weights.sum()) if mean else hidden_states.new_ones((), dtype=wide)
    pending = inverse.new_empty(0)
    if hidden_states.dtype != torch.float16:
        scale = weights * inverse
    else:
        top = weights.abs().amax() if len(weights) else torch.zeros_like(inverse)
        scale, pending = weights * one_over(top), top * inverse
    weight_dtype, settings = weight_gradient_dtype(hidden_states, weight), (start, smoothing, z_loss, max_bytes)
    # Sliced before it is cast: under autocast, a range must not cost a copy of the whole weight.
    weight, bias = weight[start:stop].to(hidden_states.dtype), None if bias is None else bias[start:stop]
    with torch.autocast(device.type, enabled=False):
        if labels.is_cuda and total and implementation(hidden_states) == "triton":
            chunk = _chunk(total, -(-len(weight) // 64) * 64 * hidden_states.element_size(), max_bytes)
            losses, *gradients = ragged_losses_and_gradients(
                hidden_states, weight, bias, given, valid, scale, needs, weight_dtype, start, smoothing, z_loss, chunk
            )
        else:
            losses, *gradients = losses_and_gradients(
                hidden_states, weight, bias, given, rows, scale, needs, weight_dtype, *settings
            )
            if not on_host:
                losses = torch.where(valid, losses, 0)
    result = (losses if factor is None else losses * weights).sum() * inverse
    if rows is not None:
        losses = losses.new_zeros(total).index_copy_(0, rows, losses)
        if needs[0] and len(rows):
            gradients[0].index_fill_(0, skipped, 0)
    return Passes(result, losses, inverse, pending, gradients)
