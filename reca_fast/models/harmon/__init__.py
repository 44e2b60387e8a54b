"""Harmon, a masked autoregressive model: a language model between the encoder and the decoder of MAR."""

from .model import HarmonModel

__all__ = ["HarmonModel"]
