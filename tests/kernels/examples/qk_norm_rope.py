"""Valid arguments of the operation `qk_norm_rope`."""

from torch import ones

EXAMPLES = {
    "qk_norm_rope": {
        "q": ones(5, 4, 8),
        "k": ones(5, 2, 8),
        "q_weight": ones(8),
        "k_weight": ones(8),
        "cos": ones(5, 8),
        "sin": ones(5, 8),
    }
}
