"""What a run will need before it begins: memory by kind, time, price, and a recipe that fits. The project's own step
runs on tensors without numbers, and what it asks for is counted.
"""

from .tracker import Category, MemoryTracker, Usage

__all__ = ["Category", "MemoryTracker", "Usage"]
