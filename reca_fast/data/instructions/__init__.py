"""Conversations about pictures, in the layout of LLaVA's instruction data or of the toy world: `data.instructions`."""

from .source import Conversations, InstructionSource, open_instructions

__all__ = ["Conversations", "InstructionSource", "open_instructions"]
