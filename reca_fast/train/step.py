"""One optimizer step over a global batch, without a host synchronisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reca_fast.config import RunConfig
from reca_fast.models import Adapter
from reca_fast.objectives import weighted_loss
from reca_fast.optim import MovingAverage, clip_gradients, learning_rate
from reca_fast.sample import TASKS

from .distributed import Processes


@dataclass(frozen=True)
class StepStats:
    """What a step leaves behind; tensors stay on the device until somebody logs them."""

    sums: dict[str, Tensor]  # task -> this process's sum of per-token losses
    counts: dict[str, int]  # task -> tokens in the global batch
    grad_norm: Tensor
    lr: float
    tokens: int  # in the global batch
    images: int
    flops: float  # of this process


def train_step(
    adapter: Adapter,
    packs: Sequence[Any],
    step: int,
    config: RunConfig,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    processes: Processes,
) -> StepStats:
    """Forward and backward of this process's packs, then one update.

    Args:
        packs: this process's `Pack`s of the global batch.
        step: updates made before this one.
    """
    local = [sum(pack.batch.counts[task] for pack in packs) for task in TASKS]
    local += [sum(pack.num_tokens for pack in packs), sum(len(pack.keys) for pack in packs)]
    *counted, tokens, images = processes.sum(local)
    counts = dict(zip(TASKS, counted, strict=True))

    sums: dict[str, Tensor] = {}
    for pack in packs:
        parts = adapter.loss_sums(adapter.encode(pack.batch.to(processes.device)))
        weighted_loss(parts, counts, config.loss).backward()
        for task, part in parts.items():
            sums[task] = sums[task] + part.detach() if task in sums else part.detach()

    rate = learning_rate(config.optim, step, config.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    grad_norm = clip_gradients(adapter.module.parameters(), config.optim.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if average is not None:
        average.update()
    flops = sum(adapter.flops(pack.batch) for pack in packs)
    return StepStats(sums, counts, grad_norm, rate, tokens, images, flops)
