"""Valid arguments of the operation `mar_diffusion_loss`."""

import torch
from torch import ones

STEPS = torch.zeros(5, dtype=torch.int64)
EXAMPLES = {
    "mar_diffusion_loss": {
        "prediction": ones(5, 16),
        "latents": ones(5, 8),
        "timesteps": STEPS,
        "noise": ones(5, 8),
        "row_weight": ones(5),
    },
    "mar_noise": {"latents": ones(5, 8), "timesteps": STEPS, "noise": ones(5, 8)},
}
