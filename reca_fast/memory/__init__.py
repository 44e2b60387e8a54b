"""Levers that trade time for memory, or the other way round. Each is a function that changes a model's blocks from
outside: models know none of them.
"""

from .apply import apply_levers
from .chunk import chunk_mlps
from .compile import compile_blocks, compiled_graphs
from .host import host_empty, watch_host_memory
from .matmul import convert_matmuls
from .offload import keep_on_host
from .place import fill_model, fill_to_draw, place_of, training_place
from .quantize import packed_parameters
from .recompute import recompute, recompute_rest
from .ring import HostWeights, Layout, Ring, on_host, swapped
from .shard import shard, sum_gradients, whole_root

__all__ = [
    "HostWeights",
    "Layout",
    "Ring",
    "apply_levers",
    "chunk_mlps",
    "compile_blocks",
    "compiled_graphs",
    "convert_matmuls",
    "fill_model",
    "fill_to_draw",
    "host_empty",
    "keep_on_host",
    "on_host",
    "packed_parameters",
    "place_of",
    "recompute",
    "recompute_rest",
    "shard",
    "sum_gradients",
    "swapped",
    "training_place",
    "watch_host_memory",
    "whole_root",
]
