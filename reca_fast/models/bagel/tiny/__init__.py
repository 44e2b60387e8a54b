"""A complete BAGEL checkpoint folder of a few megabytes, for its recipe and the tests."""

from .checkpoint import VAE_FILE, write_tiny_bagel, write_tiny_checkpoint
from .config import TinyConfig

__all__ = ["VAE_FILE", "TinyConfig", "write_tiny_bagel", "write_tiny_checkpoint"]
