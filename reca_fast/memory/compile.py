"""torch.compile, block by block."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


def compile_blocks(blocks: Sequence[nn.Module], compiler: str = "inductor") -> None:
    """Compile the forward and the backward pass of each block, without graph breaks and for every length of a batch.

    Price: a compilation in the first steps (a minute on a GPU). The blocks share their code, so it serves them all.

    Excludes: code in a block's forward that torch.compile cannot trace as one graph, which is then an error.

    Args:
        compiler: what torch.compile hands the graphs to, its argument `backend`.
    """
    for block in blocks:
        block.forward = compiled(block.forward, compiler)


def compiled(forward: Callable[..., Any], compiler: str) -> Callable[..., Any]:
    """One block's forward pass, compiled as `compile_blocks` does it."""
    done: Callable[..., Any] = torch.compile(forward, backend=compiler, fullgraph=True, dynamic=True)
    return done


def compiled_graphs() -> int:
    """How many graphs torch.compile has made so far; a forward pass and its backward pass count as one."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
