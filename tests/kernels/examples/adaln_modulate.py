"""Valid arguments of the operation `adaln_modulate`."""

from torch import ones

EXAMPLES = {
    "adaln_modulate": {
        "hidden_states": ones(5, 8),
        "shift": ones(5, 8),
        "scale": ones(5, 8),
        "weight": ones(8),
        "bias": ones(8),
    }
}
