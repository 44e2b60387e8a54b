"""A complete Show-o checkpoint folder of a few megabytes, for tests and the tiny recipes."""

from .checkpoint import write_tiny_checkpoint, write_tiny_showo, write_tiny_showo_vq
from .config import TinyConfig

__all__ = ["TinyConfig", "write_tiny_checkpoint", "write_tiny_showo", "write_tiny_showo_vq"]
