"""Tiny VLMs of each family in transformers' own folders, a few megabytes, for tests and the recipe tiny-auxiliary."""

from .checkpoint import write_tiny_auxiliary, write_tiny_vlm

__all__ = ["write_tiny_auxiliary", "write_tiny_vlm"]
