"""Parity with the authors' code: recorded cases of BAGEL, and their replay through the step of training."""

from .case import RecordedCase
from .replay import BagelCase

__all__ = ["BagelCase", "RecordedCase"]
