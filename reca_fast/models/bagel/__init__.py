"""BAGEL-7B-MoT: a mixture-of-transformers UMM with flow matching on VAE latents."""

from .model import BagelModel

__all__ = ["BagelModel"]
