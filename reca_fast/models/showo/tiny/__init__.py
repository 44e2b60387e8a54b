"""A complete Show-o checkpoint folder of a few megabytes, for tests and the tiny recipes."""

from .checkpoint import write_tiny_checkpoint
from .config import TinyConfig

__all__ = ["TinyConfig", "write_tiny_checkpoint"]
