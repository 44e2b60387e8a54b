"""Parity with the authors' code: recorded cases of OpenUni, and their replay through the step of training."""

from .case import RecordedCase
from .replay import OpenUniCase

__all__ = ["OpenUniCase", "RecordedCase"]
