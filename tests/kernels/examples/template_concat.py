"""Valid arguments of the operation `template_concat`."""

import torch
from torch import ones

EXAMPLES = {
    "template_concat": {
        "latents": ones(6, 8),
        "latent_position_ids": torch.arange(6),
        "latent_position_embedding": ones(9, 8),
        "timestep_embedding": ones(1, 8),
        "latent_cu_seqlens": torch.tensor([0, 6], dtype=torch.int32),
    }
}
