"""Plain VLMs (LLaVA, Qwen-VL, InternVL) with an auxiliary decoder that reconstructs the picture they see."""

from .model import AuxiliaryModel

__all__ = ["AuxiliaryModel"]
