"""Valid arguments of the operation `blur_patchify`."""

import torch

EXAMPLES = {
    "blur_patchify": {
        "images": [torch.zeros(28, 28, 3, dtype=torch.uint8)],
        "size": (28, 28),
        "patch_size": 14,
        "mean": 0.5,
        "std": 0.5,
        "dtype": torch.float32,
    }
}
