"""Valid arguments of the operation `mar_residual_block`."""

from torch import ones

EXAMPLES = {
    "gated_residual": {"hidden_states": ones(5, 8), "gate": ones(5, 8), "update": ones(5, 8)},
    "mar_residual_block": {
        "hidden_states": ones(5, 8),
        "modulation": ones(5, 24),
        "ln_weight": ones(8),
        "ln_bias": ones(8),
        "fc1_weight": ones(8, 8),
        "fc1_bias": ones(8),
        "fc2_weight": ones(8, 8),
        "fc2_bias": ones(8),
    },
}
