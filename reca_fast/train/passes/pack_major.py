"""One pack after another, each forward and backward through the whole model; gradients add up in the parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reca_fast.models import Model
from reca_fast.optim import Finished, Update

from .base import Weigh


class PackMajor:
    """The plain order (see `Passes`)."""

    def __init__(self, model: Model, update: Update, device: torch.device) -> None:
        self._model, self._update, self._device = model, update, device

    def gradients(self, batches: Sequence[Any], weigh: Weigh) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for batch in batches:
            parts = self._model.loss_sums(self._model.encode(batch.to(self._device)))
            weigh(parts).backward()
            for task, part in parts.items():
                sums[task] = sums[task] + part.detach() if task in sums else part.detach()
        return sums

    def update(self, losses: Tensor) -> Finished:
        return self._update.finish(losses)

    def settle(self) -> None:
        """Nothing is on its way."""
