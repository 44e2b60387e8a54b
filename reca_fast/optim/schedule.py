"""The learning rate of every step."""

import math

from reca_fast.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate after `step` steps of `total_steps`: a linear warm-up that begins at 0, then the peak rate
    (constant), or half a cosine wave down to `min_lr_ratio` of it in the last step.
    """
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps)
    floor = config.min_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
