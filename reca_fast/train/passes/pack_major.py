"""One pack after another, each forward and backward through the whole model; gradients add up in the parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reca_fast.config import ParallelConfig
from reca_fast.memory import sum_gradients
from reca_fast.models import Model
from reca_fast.optim import Finished, Update

from .base import Weigh, add_sums


class PackMajor:
    """The plain order (see `Passes`).

    Args:
        parallel: when processes that share the model sum their gradients.
    """

    def __init__(
        self, model: Model, update: Update, device: torch.device, parallel: ParallelConfig | None = None
    ) -> None:
        self._model, self._update, self._device = model, update, device
        self._parallel = parallel or ParallelConfig()

    def gradients(self, batches: Sequence[Any], weigh: Weigh) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            sum_gradients(self._model.module, self._parallel, last=number == len(batches))
            parts = self._model.loss_sums(self._model.encode(batch.to(self._device)))
            weigh(parts).backward()
            add_sums(sums, parts)
        return sums

    def update(self, losses: Tensor) -> Finished:
        return self._update.finish(losses)

    def settle(self) -> None:
        """Nothing is on its way."""
