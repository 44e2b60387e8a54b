"""Levers that trade time for memory, or the other way round. Each is a function that changes a model's blocks from
outside: models know none of them.
"""

from .apply import apply_levers
from .compile import compile_blocks, compiled_graphs
from .recompute import recompute
from .shard import shard, whole_root

__all__ = ["apply_levers", "compile_blocks", "compiled_graphs", "recompute", "shard", "whole_root"]
