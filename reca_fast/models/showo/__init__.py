"""Show-o: one Phi-1.5 that reads text and pictures, and draws by saying masked codes of a MAGVIT-v2 tokenizer."""

from .model import ShowoModel

__all__ = ["ShowoModel"]
