"""Root-mean-square normalisation."""

from .contract import rms_norm

__all__ = ["rms_norm"]
