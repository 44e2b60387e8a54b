"""Loss -> update: AdamW over the trained weights, learning-rate schedule, clipping, optional moving average."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from reca_fast.config import OptimConfig


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that require a gradient; frozen ones own no state."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )
    # Moments from the start: a run out of memory says so at once, and a checkpoint always has the same entries.
    for p in trained:
        step = torch.zeros((), device=p.device)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Rate of update number `step`, counted from 0: linear warm-up from 0, then constant or cosine to a tenth."""
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps)
    return config.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to the global norm `max_norm` (0: leave them) and return the norm before, 0-d on the
    device.
    """
    parameters = list(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class MovingAverage:
    """Exponential moving average of the trained weights, fp32, sharded like them."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.live.items()}
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Call after every optimizer step."""
        self._blend(list(self.average.values()), list(self.live.values()), None)
