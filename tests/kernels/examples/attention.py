"""Valid arguments of the operation `attention`."""

from torch import ones

from reca_fast.kernels import Varlen

EXAMPLES = {
    "varlen_attention": {
        "q": ones(5, 4, 8),
        "k": ones(5, 2, 8),
        "v": ones(5, 2, 8),
        "segments": Varlen.from_lengths([5], [5], causal=False),
    }
}
