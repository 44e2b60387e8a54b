"""The order in which the levers are pulled, stated once."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from reca_fast.config import MemoryConfig

from .compile import compile_blocks
from .matmul import convert_matmuls
from .quantize import quantize
from .recompute import recompute
from .shard import shard

CPU = torch.device("cpu")


def apply_levers(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    options: MemoryConfig,
    *,
    mesh: DeviceMesh | None = None,
    compute_dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    compiler: str = "inductor",
) -> None:
    """Pull the levers that the options ask for on a module that is still on the meta device.

    The order is that of nesting, the innermost first. What replaces parameters (`quantize`) or how they are
    multiplied (`matmul`) belongs before `compile`, so that the compiled code is that of the new ones. `recompute` goes
    around the compiled code and repeats it; offloading what it keeps belongs right after it. `shard` is outermost, so
    that a block's weights are gathered once for a pass, whatever happens inside.

    Args:
        blocks: the repeated blocks of `module`, in the order in which they run.
        mesh: of the processes that share the weights; None where there is only one.
        compute_dtype: of the arithmetic.
        device: on which the model will run.
        compiler: as `compile_blocks` takes it.

    Raises:
        UserError: the device, or what is installed, cannot do what a lever asks for.
    """
    quantize(blocks, options.frozen)
    convert_matmuls(blocks, options.matmul, device)
    if options.compile:
        compile_blocks(blocks, compiler)
    if options.recompute == "blocks":
        recompute(blocks)
    if mesh is not None:
        shard(module, blocks, mesh, compute_dtype)
