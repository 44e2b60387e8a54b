"""Adafactor: second moments as the product of a row and a column."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..parts import New, share_like, sharers
from .kind import Now, Weight

SMALLEST_SQUARE = 1e-30
"""Added to the squares of a gradient, so that none is 0."""
DECAY_EXPONENT = -0.8
"""Of the number of the step: the share of the newest squares in the running mean."""
LARGEST_RMS = 1.0
"""Of an update before the learning rate; a larger one is scaled down."""


class Adafactor:
    """Adafactor without a first moment and with the learning rate that it is given (Shazeer and Stern 2018, with
    `scale_parameter` and `relative_step` off). The second moments of a matrix are kept as the means of its rows and of
    its columns: next to no memory. Those of other parameters are kept whole.

    States: `exp_avg_sq_row` and `exp_avg_sq_col` of matrices, `exp_avg_sq` of others. It does not take `optim.betas`
    and `optim.eps`.

    The libraries' versions compute factors that are wrong where a matrix is shared out over processes; here the
    processes sum what goes over all rows.
    """

    skips = True

    def new_states(self, parameter: Tensor, new: New) -> dict[str, Tensor]:
        if parameter.ndim != 2:
            return {"exp_avg_sq": share_like(parameter, parameter.shape, torch.float32, new)}
        rows, columns = parameter.shape
        return {
            "exp_avg_sq_row": share_like(parameter, (rows,), torch.float32, new),
            "exp_avg_sq_col": new((columns,), torch.float32),
        }

    def step(self, weights: Sequence[Weight], now: Now) -> None:
        skip, share = now.skip.bool(), now.step**DECAY_EXPONENT
        for weight in weights:
            _step(weight, now, skip, share)


def _step(weight: Weight, now: Now, skip: Tensor, share: float) -> None:
    update, states = _scaled_gradient(weight, share)
    squares = _over_processes(weight, torch.linalg.vector_norm(update).square())
    rms = (squares / weight.parameter.numel()).sqrt()
    update.mul_(now.lr / (rms / LARGEST_RMS).clamp(min=1.0)).masked_fill_(skip, 0.0)
    if now.weight_decay:
        weight.values.mul_(torch.where(skip, 1.0, 1.0 - now.lr * now.weight_decay))
    weight.values.sub_(update)  # a number minus 0 is the number, to the last bit
    for name, new in states.items():
        old = weight.states[name]
        old.copy_(torch.where(skip, old, new))


def _scaled_gradient(weight: Weight, share: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient divided by the root of its second moments, and the new states. `share` is that of the newest squares
    in the running means.
    """
    gradient, old = weight.gradient, weight.states
    squares = gradient.square().add_(SMALLEST_SQUARE)
    if "exp_avg_sq" in old:
        whole = old["exp_avg_sq"].lerp(squares, share)
        return whole.rsqrt().mul_(gradient), {"exp_avg_sq": whole}
    rows = weight.parameter.shape[0]
    row = old["exp_avg_sq_row"].lerp(squares.mean(dim=1), share)
    column = old["exp_avg_sq_col"].lerp(_over_processes(weight, squares.sum(dim=0)) / rows, share)
    mean = _over_processes(weight, row.sum()) / rows
    update = squares.copy_((row / mean).rsqrt_().unsqueeze(1)).mul_(column.rsqrt()).mul_(gradient)
    return update, {"exp_avg_sq_row": row, "exp_avg_sq_col": column}


def _over_processes(weight: Weight, sums: Tensor) -> Tensor:
    """Sums over this process's part of a parameter, made those over the whole."""
    for group in sharers(weight.parameter):
        dist.all_reduce(sums, group=group)
    return sums
