"""Attention inside segments of different lengths, computed by whichever library is there."""

from .contract import BACKENDS, Varlen, available_backends, choose_backend, varlen_attention

__all__ = ["BACKENDS", "Varlen", "available_backends", "choose_backend", "varlen_attention"]
