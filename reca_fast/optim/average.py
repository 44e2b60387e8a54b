"""A moving average of the trained weights, beside them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class MovingAverage:
    """Exponential moving average (EMA) of the trained weights, in their dtype and sharded like them.

    Args:
        trained: the trained parameters by their names in the model; the average begins as a copy of them.
        decay: how much of the average an update keeps.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self.trained, self.decay = dict(trained), decay
        self.average = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Blend the weights in after an update.

        Args:
            applied: 0-d bool on the device: whether the update was made. If not, the average stays as it is.
        """
        weight = torch.where(applied, 1 - self.decay, 0.0)  # the host does not know it
        for name, average in self.average.items():
            _own_part(average).lerp_(_own_part(self.trained[name]), weight)


def _own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory: arithmetic on it costs a tenth of that on a DTensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
