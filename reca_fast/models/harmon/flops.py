"""How many useful floating-point operations a step takes, for model-FLOPs utilisation (MFU). A multiply-add is 2."""

from reca_fast.kernels import Varlen, costs

from .batch import HarmonBatch
from .config import HarmonConfig
from .diffusion import STEPS


def step_flops(config: HarmonConfig, batch: HarmonBatch) -> float:
    """Operations of the forward and the backward pass through everything that is trained.

    A weight takes 2 for each row in the forward pass and 4 more in the backward pass. Attention takes 4 for each pair
    of query and key and each channel in the forward pass, and 8 more in the backward pass. What recomputation repeats
    does not count, nor does the VAE.

    Args:
        batch: on the CPU.
    """
    llm, mar, plan = config.llm, config.mar, batch.language
    encoder_rows, decoder_rows = len(batch.encoder.order), len(batch.decoder.order)
    rows, asked, seen = len(plan.positions), len(plan.asked), len(plan.seen)
    hidden, width, noisy = llm.hidden_size, mar.diffloss_w, len(batch.timesteps)

    weights = encoder_rows * mar.encoder_depth * _block(mar.encoder_embed_dim, mar.mlp_ratio)
    weights += decoder_rows * mar.decoder_depth * _block(mar.decoder_embed_dim, mar.mlp_ratio)
    weights += (encoder_rows + seen) * hidden * (mar.encoder_embed_dim + hidden)
    weights += seen * mar.encoder_embed_dim * mar.decoder_embed_dim
    kv = llm.num_key_value_heads * llm.head_dim
    inner = 2 * hidden**2 + 3 * hidden * llm.intermediate_size
    weights += (llm.num_hidden_layers - 1) * rows * (inner + 2 * hidden * kv) + asked * inner + rows * 2 * hidden * kv
    weights += min(noisy, STEPS) * (256 * width + width**2)
    per_row = 3 * mar.token_dim * width + 2 * width**2
    weights += noisy * (per_row + 5 * mar.diffloss_d * width**2) + sum(batch.predicted.values()) * width * (
        mar.decoder_embed_dim
    )

    pairs = mar.encoder_depth * mar.encoder_embed_dim * _pairs(batch.encoder.segments)
    pairs += mar.decoder_depth * mar.decoder_embed_dim * _pairs(batch.decoder.segments)
    pairs += hidden * ((llm.num_hidden_layers - 1) * _pairs(plan.view.segments) + _pairs(plan.asked_view.segments))
    labels = costs.fused_linear_cross_entropy(rows=len(plan.labels), hidden_size=hidden, classes=llm.vocab_size).flops
    return float(6 * weights + 12 * pairs + labels)


def _block(width: int, mlp_ratio: float) -> float:
    """Numbers in the matrices of one of MAR's blocks."""
    return width**2 * (4 + 2 * mlp_ratio)


def _pairs(segments: Varlen) -> int:
    """Pairs of query and key in an attention call. On a GPU this would wait for the device."""
    pairs = zip(segments.cu_seqlens_q.diff().tolist(), segments.cu_seqlens_k.diff().tolist(), strict=True)
    # Under the causal rule the last query sees all m keys, the first m - (n - 1).
    return sum(n * m - (n * (n - 1) // 2 if segments.causal else 0) for n, m in pairs)
