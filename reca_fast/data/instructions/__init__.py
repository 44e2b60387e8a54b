"""Conversations about pictures, in the layout of LLaVA's instruction data: `data.instructions`."""

from .source import InstructionSource, open_instructions

__all__ = ["InstructionSource", "open_instructions"]
