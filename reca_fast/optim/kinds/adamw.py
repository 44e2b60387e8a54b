"""AdamW with both moments in fp32, by torch's fused kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from reca_fast.config import OptimConfig

from ..parts import New, share_like
from .kind import Now, Weight

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Running means of the gradient and of its square."""


class AdamW:
    """AdamW as torch has it, fused. States: `exp_avg` and `exp_avg_sq`, the first and second moment, and `step`, how
    many updates were made: 8 bytes for each weight.
    """

    skips = True

    def __init__(self, config: OptimConfig) -> None:
        self.betas, self.eps = config.betas, config.eps

    def new_states(self, parameter: Tensor, new: New) -> dict[str, Tensor]:
        moments = {kind: share_like(parameter, parameter.shape, torch.float32, new) for kind in MOMENTS}
        return {"step": new((), torch.float32)} | moments

    def step(self, weights: Sequence[Weight], now: Now) -> None:
        adamw(
            [weight.values for weight in weights],
            [weight.gradient for weight in weights],
            [weight.states["exp_avg"] for weight in weights],
            [weight.states["exp_avg_sq"] for weight in weights],
            [],
            [weight.states["step"] for weight in weights],
            fused=True,
            found_inf=now.skip,  # torch's own way of skipping without asking the host; its GradScaler takes it as well
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=now.lr,
            weight_decay=now.weight_decay,
            eps=self.eps,
            maximize=False,
        )
