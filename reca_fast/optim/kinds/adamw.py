"""AdamW with both moments in fp32, by torch's fused kernel."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from reca_fast.config import OptimConfig

from .kind import Now


class AdamW:
    """AdamW as torch has it, fused. States: `exp_avg` and `exp_avg_sq`, the first and second moment, and `step`, how
    many updates were made: 8 bytes for each weight.
    """

    skips = True

    def __init__(self, config: OptimConfig) -> None:
        self.betas, self.eps = config.betas, config.eps

    def new_states(self, parameter: Tensor, device: torch.device) -> dict[str, Tensor]:
        like = partial(torch.zeros_like, parameter, dtype=torch.float32, device=device)
        return {"step": torch.zeros((), device=device), "exp_avg": like(), "exp_avg_sq": like()}

    def step(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[dict[str, Tensor]], now: Now
    ) -> None:
        steps, averages, squares = ([state[kind] for state in states] for kind in ("step", "exp_avg", "exp_avg_sq"))
        adamw(
            *(list(weights), list(gradients), averages, squares, [], steps),
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
