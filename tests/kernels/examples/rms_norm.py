"""Valid arguments of the operation `rms_norm`."""

from torch import ones

EXAMPLES = {"rms_norm": {"hidden_states": ones(5, 8), "weight": ones(8)}}
