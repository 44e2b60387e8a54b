"""LayerNorm whose result is scaled and shifted by the rows" own modulation (adaptive LayerNorm)."""

from .contract import adaln_modulate

__all__ = ["adaln_modulate"]
