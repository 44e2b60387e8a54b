"""FSDP2: weights, gradients and optimizer state shared out over the processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from reca_fast.config import ParallelConfig
from reca_fast.models.parts.host_table import host_tables

from .quantize import packed_parameters

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shard(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    mesh: DeviceMesh,
    compute_dtype: torch.dtype,
    options: ParallelConfig | None = None,
) -> None:
    """Leave each process one part of every parameter. A block's parameters are gathered just before the block runs and
    freed after it, in the forward and in the backward pass; those that belong to no block form one unit more.

    Gradients are summed over the processes, not averaged: the losses are already divided by the token counts of the
    global batch, so the sum over the processes is the gradient.

    Price: two transfers of all weights and one of all gradients in a step, mostly hidden behind the arithmetic.

    Quantised weights stay whole on every process: they are small, and gathering would widen them to `compute_dtype`. So
    do tables that stay on the host, where all processes of a machine share the file's pages.

    Excludes: parameters shared between blocks; levers that replace parameters have to be pulled before.

    Args:
        mesh: of the processes; with two dimensions, the weights are replicated along the first and sharded along the
            second (HSDP).
        compute_dtype: of the gathered parameters. The shards keep the dtype that they have.
        options: in which dtype gradients are summed, and whether gathered weights are freed between the passes.
    """
    options = options or ParallelConfig()
    narrow = compute_dtype if compute_dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=DTYPES[options.reduce], cast_forward_inputs=False)
    whole = packed_parameters(module) | host_tables(module)
    for unit in (*blocks, module):
        # What belongs to no block is needed at once again by the backward pass: it always stays.
        reshard = options.reshard and unit is not module
        sharded = fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=whole, reshard_after_forward=reshard)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # else a factor becomes PREMUL_SUM, which only NCCL knows


def sum_gradients(module: nn.Module, options: ParallelConfig, *, last: bool) -> None:
    """Say, before a pack's forward pass, which sums over the processes its backward pass makes. Until the last pack,
    replicas of the model wait with theirs, and with `sync` at step so do the processes that share one.

    Args:
        module: sharded; nothing is done to one that is not.
        last: whether the pack is the last of its step.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last or options.sync == "pack")
        module.set_requires_all_reduce(last)


@contextmanager
def whole_root(module: nn.Module) -> Iterator[None]:
    """Gather the parameters that belong to no block, for calls that do not go through `module.forward`: sampling calls
    parts of the model one by one. Blocks gather themselves when they are called. Does nothing to a module that is not
    sharded.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    yield
    module.reshard()
