"""The authors' layout of a step, then `ops` in everybody else's hands: torch.compile, Apple's cross-entropy, flex
attention, other backends.
"""

from . import authors
from .ops import side_by_side
from .report import Report

SHOWN = ("eager", "ours", "liger", "reference")


def hand_in(report: Report) -> None:
    authors.hand_in(report)
    side_by_side(report, lambda name: name not in (*SHOWN, "torch.compile"))
    side_by_side(report, lambda name: name == "torch.compile", needs=20.0)  # what takes longest comes last
