"""Valid arguments of the operation `fused_linear_cross_entropy`."""

import torch
from torch import ones

EXAMPLES = {
    "fused_linear_cross_entropy": {
        "hidden_states": ones(5, 8),
        "weight": ones(16, 8),
        "labels": torch.zeros(5, dtype=torch.int64),
        "bias": ones(16),
    }
}
