"""A residual block of Harmon"s MAR denoiser."""

from .contract import gated_residual, mar_residual_block

__all__ = ["gated_residual", "mar_residual_block"]
