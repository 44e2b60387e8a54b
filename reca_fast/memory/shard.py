"""FSDP2: the parameters, their gradients and the optimizer's state, shared out over the processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def shard(module: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """FSDP2: one unit per block, one for the rest; fp32 gradients are summed, not averaged.

    Losses are already divided by the token count of the global batch, so the sum over processes is the gradient.
    """
    narrow = compute_dtype if compute_dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in (*blocks, module):
        sharded = fully_shard(unit, mesh=mesh, mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # else a factor becomes PREMUL_SUM, which only NCCL knows


@contextmanager
def whole_root(module: nn.Module) -> Iterator[None]:
    """Gather what belongs to no block, for calls that do not go through `module.forward`. Blocks gather themselves."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    yield
    module.reshard()
