"""What a run will need before it begins: memory by kind, time, price, and a recipe that fits. The project's own step
runs on tensors without numbers, and what it asks for is counted.
"""

from .choose import find
from .estimate import Estimate, estimate
from .plan import Plan, make_plan, may_fit
from .report import draw_plan, print_plan
from .simulate import Simulated, simulate
from .tracker import Category, MemoryTracker, Usage
from .work import Work, WorkLog

__all__ = [
    "Category",
    "Estimate",
    "MemoryTracker",
    "Plan",
    "Simulated",
    "Usage",
    "Work",
    "WorkLog",
    "draw_plan",
    "estimate",
    "find",
    "make_plan",
    "may_fit",
    "print_plan",
    "simulate",
]
