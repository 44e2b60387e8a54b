"""A complete Harmon checkpoint folder of a few megabytes, for tests and the tiny recipe."""

from .checkpoint import TinyConfig, write_tiny_checkpoint, write_tiny_harmon

__all__ = ["TinyConfig", "write_tiny_checkpoint", "write_tiny_harmon"]
