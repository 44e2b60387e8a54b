"""silu(gate) * up."""

from .contract import swiglu

__all__ = ["swiglu"]
