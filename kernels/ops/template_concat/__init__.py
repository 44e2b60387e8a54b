"""The decoder"s input rows, put together from text, visual and latent rows."""

from .contract import template_concat

__all__ = ["template_concat"]
