"""Normalisation of queries and keys with rotary position embedding."""

from .contract import qk_norm_rope

__all__ = ["qk_norm_rope"]
