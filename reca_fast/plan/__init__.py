"""What a run will need before it begins: memory by kind, time, price, and a recipe that fits. The project's own step
runs on tensors without numbers, and what it asks for is counted.
"""

from .estimate import Estimate, estimate
from .simulate import Simulated, simulate
from .tracker import Category, MemoryTracker, Usage
from .work import Work, WorkLog

__all__ = [
    "Category",
    "Estimate",
    "MemoryTracker",
    "Simulated",
    "Usage",
    "Work",
    "WorkLog",
    "estimate",
    "simulate",
]
