"""Pictures to patches: a resize down and up again, normalisation, and the cut into patches."""

from .contract import blur_patchify

__all__ = ["blur_patchify"]
