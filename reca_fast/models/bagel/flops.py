"""How many useful floating-point operations a step takes, for model-FLOPs utilisation (MFU). A multiply-add is 2."""

from reca_fast.kernels import Varlen, costs

from .batch import BagelBatch
from .config import BagelConfig


def step_flops(config: BagelConfig, batch: BagelBatch, *, frozen: bool) -> float:
    """Operations of the forward and the backward pass through the decoder, the layers around it and the ViT.

    A weight takes 2 for each token in the forward pass, and 4 more in the backward pass if it is trained. Attention
    takes 4 for each pair of query and key and each channel in the forward pass, and 8 more in the backward pass. What
    recomputation repeats does not count, nor does the VAE.

    Args:
        batch: on the CPU.
        frozen: whether the understanding side is frozen.
    """
    llm, vit = config.llm, config.vit
    und, gen = len(batch.und_rows), len(batch.gen_rows)
    heads = llm.num_attention_heads * llm.head_dim
    kv = llm.num_key_value_heads * llm.head_dim
    expert = llm.hidden_size * (2 * heads + 2 * kv + 3 * llm.intermediate_size)
    und_factor = 2 if frozen else 6
    linears = llm.num_hidden_layers * expert * (und_factor * und + 6 * gen)
    linears += 6 * 2 * config.patch_latent_dim * llm.hidden_size * gen
    if batch.labels is not None:
        rows, hidden, classes = len(batch.labels), llm.hidden_size, llm.vocab_size
        linears += costs.fused_linear_cross_entropy(rows=rows, hidden_size=hidden, classes=classes).flops

    pairs_und = sum(_pairs(segments) for segments in (batch.plan.full, batch.plan.causal, batch.plan.markers))
    pairs_gen = _pairs(batch.plan.generation)
    attention = llm.num_hidden_layers * heads * ((4 if frozen else 12) * pairs_und + 12 * pairs_gen)

    patches = len(batch.vit_position_ids)
    seen = patches if batch.features is None else 0  # no work for the ViT where its features are there
    vit_layer = 4 * vit.hidden_size**2 + 2 * vit.hidden_size * vit.intermediate_size
    tower = 2 * seen * config.vit_layers * vit_layer
    tower += 4 * config.vit_layers * vit.hidden_size * (_pairs(batch.vit_segments) if seen else 0)
    tower += und_factor * patches * llm.hidden_size * (vit.hidden_size + llm.hidden_size)
    return float(linears + attention + tower)


def _pairs(segments: Varlen | None) -> int:
    """Pairs of query and key in an attention call. On a GPU this would wait for the device."""
    if segments is None:
        return 0
    pairs = zip(segments.cu_seqlens_q.diff().tolist(), segments.cu_seqlens_k.diff().tolist(), strict=True)
    # Under the causal rule the last query sees all m keys, the first m - (n - 1).
    return sum(n * m - (n * (n - 1) // 2 if segments.causal else 0) for n, m in pairs)
