"""Attention inside segments of different lengths, computed by whichever library is there."""

from ..common.registry import operation
from . import costs
from .contract import BACKENDS, Varlen, available_backends, choose_backend, varlen_attention

__all__ = ["BACKENDS", "Varlen", "available_backends", "choose_backend", "varlen_attention"]

operation(
    "attention",
    functions=[varlen_attention],
    cost=costs.cost,
    flops_of_values={
        "varlen_attention_cpu": costs.cpu_flops,
        "varlen_attention_cpu_backward": costs.cpu_backward_flops,
    },
    computed_by="library",
)
