"""How every loss reduces the losses l of its rows with their weights w to one number, or to none.

    "none": w l        "sum": sum of w l        "mean": sum of w l / sum of w

Rows of weight 0 take no part, whatever they hold (the cross-entropy leaves rows out by their label). With nothing to
average (no rows, or weights that add up to 0) the mean is 0 with zero gradients, where torch has nan: a batch without
such rows must not poison a step.
"""

import torch
from torch import Tensor

from .arguments import expect, expect_floating, expect_shape


def weighted(terms: Tensor, weight: Tensor) -> Tensor:
    """terms * weight, and zero where the weight is zero, even if the term there is nan or inf."""
    return torch.where(weight != 0, terms * weight, 0)


def one_over(total: Tensor) -> Tensor:
    """1 / total, and 0 where the total is 0."""
    return torch.where(total == 0, 0, 1 / total)


def row_factors(upstream: Tensor, row_weight: Tensor | None, rows: Tensor, mean: bool) -> Tensor:
    """The derivative of the total by the loss of each row, [len(rows)] in the dtype of upstream [], the gradient of the
    total.
    """
    weight = upstream.new_ones(()).expand(len(rows)) if row_weight is None else row_weight.to(upstream.dtype)
    return upstream * weight * one_over(weight.sum()) if mean else upstream * weight


def checked_row_weight(row_weight: Tensor | None, rows: int, device: torch.device) -> Tensor | None:
    """The weights [rows] as floating-point numbers; booleans and integers become fp32. None stays None.

    Raises ValueError that begins with `row_weight` for another shape, kind or device.
    """
    if row_weight is None:
        return None
    expect_shape("row_weight", row_weight, rows)
    expect(not row_weight.is_complex(), "row_weight", "real numbers", row_weight.dtype)
    if not row_weight.is_floating_point():
        row_weight = row_weight.float()
    expect_floating(device, row_weight=row_weight)
    return row_weight
