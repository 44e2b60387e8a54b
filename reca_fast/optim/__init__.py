"""From the gradients of a step to changed weights."""

from .average import MovingAverage
from .groups import parameter_groups
from .schedule import learning_rate
from .skipped import SkippedStep, SkippedSteps
from .update import AdamWUpdate, Finished, Update, clip_gradients

__all__ = [
    "AdamWUpdate",
    "Finished",
    "MovingAverage",
    "SkippedStep",
    "SkippedSteps",
    "Update",
    "clip_gradients",
    "learning_rate",
    "parameter_groups",
]
