"""Levers that trade memory for time, pulled on a model's blocks. Models know none of them."""

from .compile import compile_blocks, compiled_graphs
from .shard import shard, whole_root

__all__ = ["compile_blocks", "compiled_graphs", "shard", "whole_root"]
