"""The order in which the levers are pulled, stated once."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from reca_fast.config import LoraConfig, MemoryConfig, ParallelConfig

from .adapters import add_adapters
from .choice import GIB, Rule, keep_narrow, keep_within
from .chunk import chunk_mlps
from .compile import compile_blocks, compiled
from .matmul import convert_matmuls
from .offload import keep_on_host
from .quantize import quantize
from .recompute import recompute, recompute_rest
from .shard import shard

CPU = torch.device("cpu")


def apply_levers(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    options: MemoryConfig,
    lora: LoraConfig | None = None,
    *,
    mesh: DeviceMesh | None = None,
    parallel: ParallelConfig | None = None,
    compute_dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    compiler: str = "inductor",
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Pull the levers that the options ask for on a module that is still on the meta device.

    The order is that of nesting, the innermost first. What adds or replaces parameters (`add_adapters`, `quantize`) or
    how they are multiplied (`matmul`) belongs before `compile`, so that the compiled code is that of the new ones.
    `recompute` goes around the compiled code and repeats it, or, where some results are kept, is compiled with it, for
    the compiler has to know them. `keep_on_host` sends what is left to keep. `shard` is outermost, so that a block's
    weights are gathered once for a pass, whatever happens inside.

    Args:
        blocks: the repeated blocks of `module`, in the order in which they run.
        lora: of the adapters; None for none.
        mesh: of the processes that share the weights; None where there is only one.
        parallel: how they share them.
        compute_dtype: of the arithmetic.
        device: on which the model will run.
        compiler: as `compile_blocks` takes it.
        say: is told, in one line, what a lever decides in the first step.

    Raises:
        UserError: the device, or what is installed, cannot do what a lever asks for.
    """
    add_adapters(module, blocks, lora or LoraConfig())
    quantize(blocks, options.frozen)
    convert_matmuls(blocks, options.matmul, device)
    if options.mlp_rows:
        chunk_mlps(blocks, options.mlp_rows)
    rule = recompute_rule(options)
    if rule is not None:
        compile_it = partial(compiled, compiler=compiler) if options.compile else None
        recompute_rest(blocks, rule, compiled=compile_it, say=say)
    elif options.compile:
        compile_blocks(blocks, compiler)
    if options.recompute == "blocks":
        recompute(blocks)
    if options.keep_on == "host":
        keep_on_host(blocks)
    if mesh is not None:
        shard(module, blocks, mesh, compute_dtype, parallel)


def recompute_rule(options: MemoryConfig) -> Rule | None:
    """What the blocks keep besides their inputs, where that is more than nothing and less than everything."""
    if options.recompute == "selective":
        return keep_narrow
    if options.recompute == "budget":
        stay = options.frozen_on == "device" and options.swap == 0
        return keep_within(int(options.budget_gib * GIB), whole_blocks=stay)
    return None
