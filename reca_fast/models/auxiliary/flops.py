"""How many useful floating-point operations a step takes, for model-FLOPs utilisation (MFU). A multiply-add is 2."""

from typing import Any

from reca_fast.kernels import costs

from .batch import AuxiliaryBatch
from .network import AuxiliaryNetwork
from .vlm import Tower
from .weights import numbers


def step_flops(network: AuxiliaryNetwork, tower: Tower, text: Any, batch: AuxiliaryBatch, cell: int) -> float:
    """Operations of the forward and the backward pass of a pack, and of the frozen tower's forward pass where its
    features are not there yet. What recomputation repeats does not count, nor does the VAE.

    Args:
        text: transformers' configuration of the language model.
        batch: on the CPU.
        cell: side in pixels of what is reconstructed as one.
    """
    language, tokens = network.language, batch.num_tokens
    heads: int = text.num_attention_heads * (
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    )
    lengths = batch.segments.cu_seqlens_q.diff().tolist()
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    total = 6.0 * tokens * numbers(language.layers) + 12.0 * int(text.num_hidden_layers) * heads * pairs
    total += 6.0 * len(batch.image_rows) * numbers(language.projector)
    if len(batch.labels):
        sizes = {"hidden_size": text.hidden_size, "classes": text.vocab_size}
        total += float(costs.fused_linear_cross_entropy(rows=len(batch.labels), **sizes).flops)
    if batch.features is None:
        total += 2.0 * len(batch.image_rows) * tower.family.patches_of_token * numbers(tower)
    shapes = [(height // cell, width // cell) for width, height in batch.target_sizes]
    decoded: list[float] = [
        network.decoder.flops(batch.grids[i], shape) for i, shape in zip(batch.reconstructed, shapes, strict=True)
    ]
    return float(total + 3 * sum(decoded))
