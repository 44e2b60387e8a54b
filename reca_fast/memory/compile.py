"""torch.compile, block by block."""

from collections.abc import Sequence

import torch
from torch import nn


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Compile each block without graph breaks. Blocks share their code, so one compilation serves them all."""
    for block in blocks:
        block.compile(backend=backend, fullgraph=True, dynamic=True)


def compiled_graphs() -> int:
    """How many graphs torch.compile has made so far, forward passes only; their backward passes come with them."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
