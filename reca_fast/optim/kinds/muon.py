"""Muon for matrices, AdamW for everything else, by torch's functions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim._muon import muon  # what torch.optim.Muon calls; only here a step takes states that lie elsewhere

from reca_fast.config import OptimConfig

from ..parts import New, share_like
from .adamw import AdamW
from .kind import Now, Weight

MOMENTUM = 0.95
NEWTON_SCHULZ, STEPS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7
"""torch's defaults: five steps of an iteration that brings all singular values of an update near to 1."""
SMALLEST_MATRIX = 16
"""Fewer rows or columns are no map between two spaces: tables of scales and a few queries are AdamW's."""


class Muon:
    """Muon (Jordan 2024): the update of a matrix is its momentum with all singular values brought near to 1, scaled so
    that its size is that of an AdamW update at the same learning rate (Moonlight's rule). Other parameters, among them
    matrices of fewer than SMALLEST_MATRIX rows or columns, follow AdamW.

    A matrix that is shared out over processes cannot be updated part by part; `config/rules.py` refuses that.

    States: `momentum_buffer` of a matrix, 4 bytes for each weight; those of AdamW otherwise.
    """

    skips = False

    def __init__(self, config: OptimConfig) -> None:
        self._others = AdamW(config)

    def new_states(self, parameter: Tensor, new: New) -> dict[str, Tensor]:
        if not is_matrix(parameter):
            return self._others.new_states(parameter, new)
        return {"momentum_buffer": share_like(parameter, parameter.shape, torch.float32, new)}

    def step(self, weights: Sequence[Weight], now: Now) -> None:
        matrices = [weight for weight in weights if "momentum_buffer" in weight.states]
        others = [weight for weight in weights if "momentum_buffer" not in weight.states]
        if others:
            self._others.step(others, now)
        muon(
            [weight.values for weight in matrices],
            [weight.gradient for weight in matrices],
            [weight.states["momentum_buffer"] for weight in matrices],
            lr=now.lr,
            weight_decay=now.weight_decay,
            momentum=MOMENTUM,
            nesterov=True,
            ns_coefficients=NEWTON_SCHULZ,
            ns_steps=STEPS,
            eps=EPS,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is updated by Muon."""
    return parameter.ndim == 2 and min(parameter.shape) >= SMALLEST_MATRIX
