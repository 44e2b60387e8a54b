"""From the gradients of a step to changed weights."""

from .average import MovingAverage
from .groups import Group, group_by_block
from .schedule import learning_rate
from .skipped import SkippedStep, SkippedSteps
from .update import Finished, Update, open_update

__all__ = [
    "Finished",
    "Group",
    "MovingAverage",
    "SkippedStep",
    "SkippedSteps",
    "Update",
    "group_by_block",
    "learning_rate",
    "open_update",
]
