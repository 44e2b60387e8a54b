"""A moving average of the trained weights, beside them."""

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Exponential moving average of the trained weights, fp32, sharded like them."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.live.items()}
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Call after every optimizer step."""
        self._blend(list(self.average.values()), list(self.live.values()), None)
