"""From a loss's gradients to changed weights."""

from .average import MovingAverage
from .schedule import learning_rate
from .update import clip_gradients, make_optimizer

__all__ = ["MovingAverage", "clip_gradients", "learning_rate", "make_optimizer"]
