"""Pictures to patch embeddings: `blur_patchify` and the projection behind it."""

from .contract import blur_patch_embed

__all__ = ["blur_patch_embed"]
