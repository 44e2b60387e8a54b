"""Valid arguments of the operation `flow_matching`."""

from torch import ones

EXAMPLES = {
    "flow_interpolate": {"latents": ones(5, 8), "timesteps": ones(5) / 2, "noise": ones(5, 8)},
    "flow_matching_loss": {
        "prediction": ones(5, 8),
        "latents": ones(5, 8),
        "timesteps": ones(5) / 2,
        "noise": ones(5, 8),
        "row_weight": ones(5),
    },
}
