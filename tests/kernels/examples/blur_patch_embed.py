"""Valid arguments of the operation `blur_patch_embed`."""

import torch
from torch import ones

EXAMPLES = {
    "blur_patch_embed": {
        "images": [torch.zeros(28, 28, 3, dtype=torch.uint8)],
        "weight": ones(4, 588),
        "bias": ones(4),
        "position_embedding": ones(9, 4),
        "position_ids": torch.arange(4),
        "size": (28, 28),
        "patch_size": 14,
        "mean": 0.5,
        "std": 0.5,
    }
}
