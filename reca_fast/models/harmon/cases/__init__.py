"""Parity with the authors' code: recorded cases of Harmon, and their replay through the step of training."""

from .case import RecordedCase
from .replay import HarmonCase

__all__ = ["HarmonCase", "RecordedCase"]
