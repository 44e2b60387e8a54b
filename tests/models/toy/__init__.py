"""A masked-token model of some 350 lines. It belongs to the tests alone: it shows that the protocol suffices."""

from .model import ToyModel, write_toy_checkpoint

__all__ = ["ToyModel", "write_toy_checkpoint"]
