"""How many useful floating-point operations a step takes, for model-FLOPs utilisation (MFU). A multiply-add is 2."""

from reca_fast.kernels import Varlen

from .batch import OpenUniBatch
from .config import OpenUniConfig


def step_flops(config: OpenUniConfig, batch: OpenUniBatch) -> float:
    """Operations of the forward and the backward pass through the network and, where it still has to run, the vision
    tower. A weight takes 2 for each row in the forward pass, 2 more in the backward pass where a gradient goes through
    it, and another 2 where it is trained; attention takes 4, and 8 more. What recomputation repeats does not count, nor
    does the DC-AE.

    Args:
        batch: on the CPU.
    """
    llm, connector, sana = config.llm, config.connector, config.sana
    prompt, queries, cells = len(batch.prompt_ids), len(batch.query_positions), len(batch.target_index)
    heads, kv = llm.hidden_size, llm.num_key_value_heads * llm.head_dim
    layer = llm.hidden_size * (2 * heads + 2 * kv + 3 * llm.intermediate_size)
    keys_only = 2 * llm.hidden_size * kv  # all that the last layer computes of a prompt
    prefix = 2 * prompt * ((llm.num_hidden_layers - 1) * layer + keys_only)
    prefix += 4 * (llm.num_hidden_layers - 1) * heads * _pairs(batch.prompt_view.segments)
    rows = llm.num_hidden_layers * (4 * queries * layer + 12 * heads * _pairs(batch.query_view.segments))

    width = connector.hidden_size
    joined = connector.num_hidden_layers * 6 * queries * (4 * width**2 + 2 * width * connector.intermediate_size)
    joined += connector.num_hidden_layers * 12 * width * _pairs(batch.query_segments)
    joined += 6 * queries * width * sana.caption_channels

    width, inner = sana.hidden_size, sana.num_cross_attention_heads * sana.cross_attention_head_dim
    channels = sana.mlp_channels
    per_cell = 4 * width**2 + 2 * width * inner + 3 * width * channels + 18 * channels
    per_cell += 2 * width * sana.attention_head_dim  # keys with values, queries with their product
    block = 6 * cells * per_cell + 6 * queries * 2 * width * inner
    block += 12 * inner * sum(_pairs(group.cross) for group in batch.groups)
    drawn = sana.num_layers * block + 6 * queries * width * (sana.caption_channels + width)
    drawn += 12 * cells * width * sana.in_channels

    seen = 0.0
    if batch.features is None:
        vit, pictures = config.vit, len(batch.conditions)
        patches = vit.side**2
        tower = patches * (4 * vit.hidden_size**2 + 2 * vit.hidden_size * vit.intermediate_size)
        seen = 2.0 * pictures * config.vit_layers * (tower + 2 * vit.hidden_size * patches**2)
        joined_width = vit.hidden_size * config.joined**2
        seen += 2 * pictures * config.picture_tokens * llm.hidden_size * (joined_width + llm.hidden_size)
    return float(prefix + rows + joined + drawn + seen)


def _pairs(segments: Varlen) -> int:
    """Pairs of query and key in an attention call. On a GPU this would wait for the device."""
    pairs = zip(segments.cu_seqlens_q.diff().tolist(), segments.cu_seqlens_k.diff().tolist(), strict=True)
    # Under the causal rule the last query sees all m keys, the first m - (n - 1).
    return sum(n * m - (n * (n - 1) // 2 if segments.causal else 0) for n, m in pairs)
