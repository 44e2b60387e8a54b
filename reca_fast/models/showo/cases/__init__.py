"""Parity with the authors' code: recorded cases of Show-o, and their replay through the step of training."""

from .case import RecordedCase
from .replay import ShowoCase

__all__ = ["RecordedCase", "ShowoCase"]
