"""Pictures to patch embeddings: `blur_patchify` and the projection behind it."""

from ..common.registry import operation
from . import costs
from .contract import blur_patch_embed

__all__ = ["blur_patch_embed"]

operation(
    "blur_patch_embed",
    functions=[blur_patch_embed],
    cost=costs.cost,
    flops={
        "blur_patch_embed": costs.forward_flops,
        "blur_patch_embed_backward": costs.backward_flops,
    },
)
