"""Rules of optimizers: how weights and states follow from gradients. One file for each library."""

from .adamw import AdamW
from .kind import Kind, Now

__all__ = ["AdamW", "Kind", "Now"]
