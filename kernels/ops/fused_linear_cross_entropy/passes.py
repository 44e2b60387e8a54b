"""One pass over all rows of the loss: which rows count, their logits chunk by chunk, losses and gradients.

contract.py says what is computed.
"""

import torch
from torch import Tensor

from ..common.implementation import implementation
from ..common.reductions import one_over
from ..common.transfer import to_device
from .ragged_matmul import ragged_losses_and_gradients
from .row_kernels import launch_cross_entropy_rows
from .settings import Gradients, Needs, Result, Settings

BLOCK = 2048
"""Rows of the hidden states' gradient that are computed at once."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of losses and sums: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def weight_gradient_dtype(hidden_states: Tensor, weight: Tensor) -> torch.dtype:
    """Of the weight's gradient: that of the weight, which under autocast is often wider than that of the products; fp32
    where either is fp16 (see `forward`).
    """
    return torch.float32 if torch.float16 in (hidden_states.dtype, weight.dtype) else weight.dtype


def reference_cross_entropy_rows(
    buffer: Tensor,
    classes: int,
    bias: Tensor | None,
    labels: Tensor,
    scale: Tensor | None,
    settings: Settings,
) -> Tensor:
    """As `launch_cross_entropy_rows`, in plain torch."""
    smoothing, z_loss = settings.label_smoothing, settings.z_loss
    logits = buffer[:, :classes].to(wide_dtype(buffer.dtype))
    if bias is not None:
        logits = logits + bias[:classes]
    target = labels - settings.start
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
    """Rows of a chunk: chunks are as equal as possible, and multiples of 128 rows where that fits into `max_bytes`."""
    most = max(1, max_bytes // row_bytes)
    size = -(-rows // -(-rows // most))
    return min(most, -(-size // 128) * 128) if size < rows else size


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, summed in the dtype of total, which may be wider than that of a and b."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        b = b.to(total.dtype)
        for part in range(0, len(a), BLOCK):  # no wide copy of all logits
            total[part : part + BLOCK].addmm_(a[part : part + BLOCK].to(total.dtype), b)


def _even(classes: int) -> int:
    """How many of the classes a 16-bit product takes at full speed: a multiple of 8, which cuBLAS wants of every side.
    On an H200, Show-o's 58498 classes in one product took 2.8 times as long as 58496 and the last two by themselves.
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
    settings: Settings,
) -> tuple[Tensor, Gradients]:
    """Losses [n] and gradients of the n rows that count, with products of a library.

    Args:
        weight, bias: of the classes in range, [classes, D] and [classes].
        labels, scale: [n], of the rows that count; see `launch_cross_entropy_rows`.
        rows: [n] ascending ids of the rows that count, or None where all do.
        weight_dtype: of the weight's gradient.
    """
    row_losses = (
        launch_cross_entropy_rows if implementation(hidden_states) == "triton" else reference_cross_entropy_rows
    )
    (total, dim), classes, count = hidden_states.shape, len(weight), len(labels)
    width = -(-classes // 64) * 64
    empty, wide = hidden_states.new_empty, wide_dtype(hidden_states.dtype)
    row_bytes = width * hidden_states.element_size()
    chunk = _chunk(count, row_bytes, settings.max_logits_bytes) if count else 0
    for_hidden = empty(total if needs.hidden_states else 0, dim)
    # Several chunks add up in a wide dtype, and so does one whose sum leaves in a wider dtype than the products'.
    add_up = chunk < count or weight_dtype != weight.dtype
    for_weight = empty(classes if needs.weight else 0, dim, dtype=wide if add_up else weight_dtype)
    for_bias = hidden_states.new_zeros(classes if needs.bias else 0, dtype=wide)
    losses = empty(count, dtype=wide)
    if not count:
        return losses, Gradients(for_hidden.zero_(), for_weight.zero_().to(weight_dtype), for_bias)
    padded = None
    if bias is not None:
        padded = bias.new_zeros(width, dtype=wide)
        padded[:classes] = bias
    buffer = empty(chunk, width)
    if not buffer.is_cuda:
        # torch's 16-bit products on a CPU read beyond a row's classes, times 0: a stray NaN would stay.
        buffer[:, classes:] = 0
    # Gathered hidden states lie where the gradient will be: the i-th row that counts in row i. Its gradient is written
    # to row rows[i] >= i. From the last chunk to the first, none is written over rows that a later chunk still reads.
    for first in reversed(range(0, count, chunk)):
        here = slice(first, min(first + chunk, count))
        size = here.stop - here.start
        if rows is None:
            x = hidden_states[here]
        elif needs.hidden_states:
            x = torch.index_select(hidden_states, 0, rows[here], out=for_hidden[here])
        else:
            x = hidden_states.index_select(0, rows[here])
        logits = buffer[:size, :classes]
        _multiply_into(logits, x, weight)
        losses[here] = row_losses(
            buffer[:size], classes, padded, labels[here], scale[here] if any(needs) else None, settings
        )
        if needs.bias:
            for_bias += logits.sum(0, dtype=wide)
        if needs.weight and here.stop == count:
            if for_weight.dtype != x.dtype:
                _add_product(for_weight.zero_(), logits.t(), x)
            else:
                torch.mm(logits.t(), x, out=for_weight)
        elif needs.weight:
            _add_product(for_weight, logits.t(), x)
        if needs.hidden_states and rows is None:
            _multiply_back(logits, weight, for_hidden[here])
        elif needs.hidden_states and rows is not None:
            for block in range(0, size, BLOCK):
                part = slice(block, min(block + BLOCK, size))
                formed = _multiply_back(logits[part], weight, empty(part.stop - part.start, dim))
                for_hidden.index_copy_(0, rows[here][part], formed)
    del buffer, logits  # before the weight gradient is cast
    return losses, Gradients(for_hidden, for_weight.to(weight_dtype), for_bias)


def forward(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    factor: Tensor | None,
    mean: bool,
    needs: Needs,
    settings: Settings,
) -> Result:
    """Losses, their total, and the gradients of the total.

    In fp16 finished gradients could vanish (divided by thousands of rows before a loss scale arrives) or overflow
    (summed over rows with large weights). So rows are scaled by their share of the largest weight only, the weight's
    gradient stays in fp32, and the rest of the factor is left `pending`. Rows of less than some 1e-7 of the largest
    weight are lost.

    Args:
        weight, bias: of the whole vocabulary, [V, D] and [V].
        labels: [N] int64, on the CPU or beside hidden_states.
        factor: [N], the weight of each row; None for ones.
        mean: whether the total is divided by the sum of the weights.

    Raises:
        ValueError: a label on the CPU that is neither in range nor ignored.
    """
    start, stop, ignore_index = settings[:3]
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
    weight_dtype = weight_gradient_dtype(hidden_states, weight)
    # Sliced before it is cast: under autocast, a range must not cost a copy of the whole weight.
    weight, bias = weight[start:stop].to(hidden_states.dtype), None if bias is None else bias[start:stop]
    with torch.autocast(device.type, enabled=False):
        if labels.is_cuda and total and implementation(hidden_states) == "triton":
            row_bytes = -(-len(weight) // 64) * 64 * hidden_states.element_size()
            chunk = _chunk(total, row_bytes, settings.max_logits_bytes)
            losses, gradients = ragged_losses_and_gradients(
                hidden_states, weight, bias, given, valid, scale, needs, weight_dtype, settings, chunk
            )
        else:
            losses, gradients = losses_and_gradients(
                hidden_states, weight, bias, given, rows, scale, needs, weight_dtype, settings
            )
            if not on_host:
                losses = torch.where(valid, losses, 0)
    result = (losses if factor is None else losses * weights).sum() * inverse
    if rows is not None:
        losses = losses.new_zeros(total).index_copy_(0, rows, losses)
        if needs.hidden_states and len(rows):
            gradients.hidden_states.index_fill_(0, skipped, 0)
    return Result(result, losses, inverse, pending, gradients)
