"""Valid arguments of the operation `swiglu`."""

from torch import ones

EXAMPLES = {"swiglu": {"gate": ones(5, 8), "up": ones(5, 8)}}
