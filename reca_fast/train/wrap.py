"""Compile the blocks, then shard them: the order in which both work together."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile each block without graph breaks. Blocks share their code, so one compilation serves them all."""
    for block in blocks:
        block.compile(fullgraph=True, dynamic=True)


def recompilations() -> int:
    """How often torch.compile had to compile so far (0 when nothing is compiled)."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def shard(module: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """FSDP2: one unit per block, one for the rest; fp32 gradients are summed, not averaged.

    Losses are already divided by the token count of the global batch, so the sum over processes is the gradient.
    """
    narrow = compute_dtype if compute_dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(1.0)
