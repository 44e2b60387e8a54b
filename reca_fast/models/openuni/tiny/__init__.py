"""A complete OpenUni checkpoint folder of a few megabytes, for the tiny recipe and the tests."""

from .checkpoint import TinyConfig, write_tiny_checkpoint, write_tiny_openuni

__all__ = ["TinyConfig", "write_tiny_checkpoint", "write_tiny_openuni"]
