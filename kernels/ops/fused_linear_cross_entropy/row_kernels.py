"""Triton kernel for the loss of each row of logits, with the gradient written over the logits, and its launch.

A program takes one row. A row of up to 8192 classes is held in registers, so it is read once and written once. A longer
one is read twice, in blocks, and written once.

Rows of the buffer are padded to `width`, a multiple of 64 classes. Masks compare with that width, so every access is
128 bits wide even where the vocabulary is odd. What stands in the padding is replaced by -inf once it is loaded, and
zeros are written there.
"""

import torch
from torch import Tensor

from ..common.optional_triton import LAUNCH, tl, triton
from .settings import Settings

ON_CHIP = 8192
"""The most classes that a program keeps in registers."""


@triton.jit
def _logits(logits_ptr, bias_ptr, columns, width, classes):
    x = tl.load(logits_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + columns, mask=columns < width, other=0.0)
    return tl.where(columns < classes, x, -float("inf"))


@triton.jit
def _gradient(x, columns, width, classes, top, log_total, target, scale, per_probability, on_target, on_each):
    """scale times the derivative of the loss by the logits x; zero in the padding, where x is -inf."""
    gradient = tl.exp((x - top) - log_total) * per_probability - on_each
    gradient = tl.where(columns == target, gradient - on_target, gradient)
    return tl.where(columns < classes, gradient * scale, 0.0)


@triton.jit
def cross_entropy_rows_kernel(
    logits_ptr,
    bias_ptr,  # [width] fp32, or None
    labels_ptr,  # [rows] int64, ids of the whole vocabulary
    scale_ptr,  # [rows], derivative of the total by the loss of the row; None where no gradient is wanted
    count_ptr,  # int64: programs of rows from this one on return at once; None: there are none
    losses_ptr,  # [rows] fp32
    first_row,
    start,  # first class
    classes,
    width,
    row_stride,
    scale_stride,
    smoothing,
    z_loss,
    SMOOTHING: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if count_ptr is not None:  # noqa: SIM102
        if first_row + row >= tl.load(count_ptr):
            return
    row_ptr = logits_ptr + row * row_stride
    target = tl.load(labels_ptr + row) - start
    inside = (target >= 0) & (target < classes)
    at_target = tl.load(row_ptr + target, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        at_target += tl.load(bias_ptr + target, mask=inside, other=0.0)
    at_target = tl.where(inside, at_target, float("nan"))  # an impossible label must not pass for a loss
    columns = tl.arange(0, BLOCK)
    if ON_CHIP:
        x = _logits(row_ptr, bias_ptr, columns, width, classes)
        top = tl.max(x)
        total = tl.sum(tl.exp(x - top))
        if SMOOTHING:
            above_target = tl.sum(tl.where(columns < classes, x - at_target, 0.0))
    else:
        top = tl.full([], -float("inf"), tl.float32)
        total = tl.full([], 0.0, tl.float32)
        above_target = tl.full([], 0.0, tl.float32)
        for begin in range(0, width, BLOCK):
            x = _logits(row_ptr, bias_ptr, begin + columns, width, classes)
            higher = tl.maximum(top, tl.max(x))
            safe = tl.where(higher == -float("inf"), 0.0, higher)
            total = total * tl.exp(top - safe) + tl.sum(tl.exp(x - safe))
            top = higher
            if SMOOTHING:
                above_target += tl.sum(tl.where(begin + columns < classes, x - at_target, 0.0))
    # Differences first: logsumexp alone would be rounded to the magnitude of the logits.
    log_total = tl.log(total)
    lse = top + log_total
    loss = log_total + (top - at_target) + z_loss * lse * lse
    if SMOOTHING:
        loss -= smoothing / classes * above_target
    tl.store(losses_ptr + row, loss)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + row * scale_stride).to(tl.float32)
        scale = tl.where(inside, scale, float("nan"))
        per_probability = 1.0 + 2.0 * z_loss * lse
        on_target = 1.0 - smoothing
        on_each = smoothing / classes
        if ON_CHIP:
            gradient = _gradient(
                x, columns, width, classes, top, log_total, target, scale, per_probability, on_target, on_each
            )
            tl.store(row_ptr + columns, gradient.to(logits_ptr.dtype.element_ty), mask=columns < width)
        else:
            for begin in range(0, width, BLOCK):
                here = begin + columns
                x = _logits(row_ptr, bias_ptr, here, width, classes)
                gradient = _gradient(
                    x, here, width, classes, top, log_total, target, scale, per_probability, on_target, on_each
                )
                tl.store(row_ptr + here, gradient.to(logits_ptr.dtype.element_ty), mask=here < width)


def launch_cross_entropy_rows(
    buffer: Tensor,
    classes: int,
    bias: Tensor | None,
    labels: Tensor,
    scale: Tensor | None,
    settings: Settings,
    count: Tensor | None = None,
    first_row: int = 0,
) -> Tensor:
    """Losses of rows of logits, fp32 [rows]; where `scale` is given the logits are replaced by their gradient.

    Args:
        buffer: [rows, width], logits in the first `classes` columns.
        bias: fp32 [width], added to the logits; or None.
        labels: [rows] int64, ids of the whole vocabulary.
        scale: [rows], derivative of the total by the loss of each row; or None.
        count: [] int64 on the device. Row i of the buffer is left alone unless first_row + i < count. None: no row is.
    """
    rows, width = buffer.shape
    losses = buffer.new_empty(rows, dtype=torch.float32)
    on_chip = width <= ON_CHIP
    block = max(64, triton.next_power_of_2(width)) if on_chip else ON_CHIP // 2 if bias is not None else ON_CHIP
    cross_entropy_rows_kernel[(rows,)](
        buffer,
        bias,
        labels.contiguous(),
        scale,
        count,
        losses,
        first_row,
        settings.start,
        classes,
        width,
        buffer.stride(0),
        0 if scale is None else scale.stride(0),
        settings.label_smoothing,
        settings.z_loss,
        SMOOTHING=settings.label_smoothing > 0,
        ON_CHIP=on_chip,
        BLOCK=block,
        num_warps=16 if block >= 4096 else 8 if block >= 2048 else 4,
        **LAUNCH,
    )
    return losses
