"""OpenUni: a frozen InternVL3 reads the prompt, learnt queries behind it become the context of a SANA that draws."""

from .model import OpenUniModel

__all__ = ["OpenUniModel"]
