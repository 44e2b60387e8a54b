"""BAGEL-7B-MoT: a mixture-of-transformers UMM with flow matching on VAE latents."""

from .adapter import BagelAdapter, check_checkpoint

__all__ = ["BagelAdapter", "check_checkpoint"]
