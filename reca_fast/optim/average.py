"""A moving average of the trained weights, beside them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .parts import own_part


class MovingAverage:
    """Exponential moving average (EMA) of the trained weights, in fp32 and sharded like them.

    Args:
        trained: the trained parameters by their names in the model; the average begins as a copy of them.
        decay: how much of the average an update keeps.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self.trained, self.decay = dict(trained), decay
        self.average = {name: parameter.detach().to(torch.float32, copy=True) for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Blend the weights in after an update.

        Args:
            applied: 0-d bool on the device: whether the update was made. If not, the average stays as it is.
        """
        weight = torch.where(applied, 1 - self.decay, 0.0)  # the host does not know it
        for name, average in self.average.items():
            own_part(average).lerp_(own_part(self.trained[name]).float(), weight)
