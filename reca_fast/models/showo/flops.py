"""How many useful floating-point operations a step takes, for model-FLOPs utilisation (MFU). A multiply-add is 2."""

from reca_fast.kernels import Varlen, costs

from .batch import ShowoBatch
from .config import ShowoConfig


def step_flops(config: ShowoConfig, batch: ShowoBatch, vector_width: int | None) -> float:
    """Operations of the forward and the backward pass through projector, layers and head.

    A weight takes 2 for each token in the forward pass and 4 more in the backward pass; attention takes 4 for each
    pair of query and key and each channel, and 8 more. What recomputation repeats does not count, nor do the frozen
    encoders.

    Args:
        batch: on the CPU.
        vector_width: width of CLIP's vectors; None without CLIP.
    """
    phi = config.phi
    width, layers = phi.hidden_size, phi.num_hidden_layers
    linears = 6 * layers * width * (4 * width + 2 * phi.intermediate_size) * batch.num_tokens
    attention = 12 * layers * width * sum(_pairs(call) for call in (batch.plan.full, batch.plan.causal))
    projector = 0 if vector_width is None else 6 * len(batch.vector_rows) * width * (vector_width + width)
    head = sum(
        costs.fused_linear_cross_entropy(rows=rows, hidden_size=width, classes=config.vocab_size).flops
        for rows in batch.counts.values()
    )
    return float(linears + attention + projector + head)


def _pairs(segments: Varlen | None) -> int:
    """Pairs of query and key in an attention call."""
    if segments is None:
        return 0
    pairs = zip(segments.cu_seqlens_q.diff().tolist(), segments.cu_seqlens_k.diff().tolist(), strict=True)
    # Under the causal rule the last query sees all m keys, the first m - (n - 1).
    return sum(n * m - (n * (n - 1) // 2 if segments.causal else 0) for n, m in pairs)
