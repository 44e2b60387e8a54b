"""From a configuration and a GPU to what the run will need: memory, time and price."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from reca_fast.config import RunConfig
from reca_fast.hardware import Gpu
from reca_fast.models import Model
from reca_fast.train.state import trained

from .roofline import HIDDEN, MATMUL, PCIE, TRAFFIC, step_seconds
from .simulate import MOST_PACKS, Simulated, simulate
from .tracker import CATEGORIES
from .work import Work

GIB = 2**30
CONTEXT = 0.6e9
"""Bytes that the CUDA context and its libraries take before anything is allocated."""
SLACK = 0.04
"""Gaps that the allocator leaves, as a share of what comes and goes in a step (with growing segments, as `train` sets
it)."""
HOST_OVERHEAD = 4e9
"""Bytes of host memory that the process itself, the loader and pinned staging take."""


@dataclass(frozen=True)
class Plan:
    """What a run needs, on each GPU and its share of the host. Its fields are the keys of `--json`."""

    fits: bool
    peak_gpu_gib: float  # the sum of by_category
    peak_host_gib: float  # of all processes of a host
    by_category: dict[str, float]  # GiB at the peak, on each GPU
    tflop_per_image: float  # executed, of all matrix products
    step_seconds: float
    images_per_step: int  # over all GPUs
    tokens_per_step: int
    hours_per_1000_steps: float
    price_per_1000_steps: float | None
    gpu: str
    gpus: int
    gpu_memory_gib: float  # what a program finds free
    host_ram_gib: float | None
    useful_flops_share: float  # of the bf16 peak, as MFU counts it
    compute_seconds: float
    pcie_seconds: float
    exchange_seconds: float
    assumptions: list[str]

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON takes it."""
        return asdict(self)


def make_plan(
    config: RunConfig,
    open_model: Callable[[], Model],
    gpu: Gpu,
    *,
    gpus: int = 1,
    host_ram_gib: float | None = None,
    price: float | None = None,
) -> Plan:
    """Run the step of this configuration on fake tensors and reckon what a GPU makes of it.

    Args:
        open_model: gives the model, on the meta device, anew at each call.
        gpus: that train together, one process each.
        host_ram_gib: memory of each host; None for any.
        price: of a GPU for an hour.

    Raises:
        UserError: the configuration cannot be trained.
    """
    packs = max(1, config.data.packs_per_step // gpus)
    sharded = gpus > 1 and config.memory.order == "pack"
    run = replace(config, memory=replace(config.memory, trained="bf16")) if sharded else config
    step = _several_packs(run, open_model, packs)
    held, exchanged = dict(step.device.by_category), 0.0
    if sharded:
        held, exchanged = _shared_out(held, open_model(), config, gpus, packs)
    elif gpus > 1:
        exchanged = 2 * 4.0 * sum(p.numel() for p in trained(open_model().module).values())
    moving = held["activations"] + held["workspace"]
    by_category = {category: nbytes / GIB for category, nbytes in held.items()}
    by_category["runtime"] = (CONTEXT + SLACK * moving) / GIB
    peak = sum(by_category.values())
    host = (min(gpus, 8) * (step.host.total + HOST_OVERHEAD)) / GIB
    seconds = step_seconds(step.work, gpu, exchanged=exchanged, gpus=gpus)
    memory = gpu.usable_bytes / GIB
    return Plan(
        fits=peak <= memory and (host_ram_gib is None or host <= host_ram_gib),
        peak_gpu_gib=peak,
        peak_host_gib=host,
        by_category=by_category,
        tflop_per_image=step.work.flops / step.images / 1e12,
        step_seconds=seconds.total,
        images_per_step=step.images * gpus,
        tokens_per_step=step.tokens * gpus,
        hours_per_1000_steps=seconds.total / 3.6,
        price_per_1000_steps=None if price is None else price * gpus * seconds.total / 3.6,
        gpu=gpu.name,
        gpus=gpus,
        gpu_memory_gib=memory,
        host_ram_gib=host_ram_gib,
        useful_flops_share=step.useful_flops / seconds.total / (gpu.bf16 * 1e12),
        compute_seconds=seconds.compute,
        pcie_seconds=seconds.host_transfers,
        exchange_seconds=seconds.gpu_transfers,
        assumptions=_assumptions(config, gpu, gpus, sharded, packs),
    )


def _several_packs(config: RunConfig, open_model: Callable[[], Model], packs: int) -> Simulated:
    """The step of one process; what further packs add is reckoned from the difference of two and three."""
    if packs <= MOST_PACKS:
        return simulate(config, open_model(), packs)
    two, three = (simulate(config, open_model(), n) for n in (MOST_PACKS - 1, MOST_PACKS))
    more = packs - MOST_PACKS

    def further(a: Mapping[Any, int], b: Mapping[Any, int]) -> dict[Any, int]:
        return {key: b[key] + more * (b[key] - a[key]) for key in b}

    launches = further(two.work.launches, three.work.launches)
    moved = {
        name: getattr(three.work, name) + more * (getattr(three.work, name) - getattr(two.work, name))
        for name in ("to_device", "to_host")
    }
    return Simulated(
        replace(three.device, by_category=further(two.device.by_category, three.device.by_category)),
        replace(three.host, by_category=further(two.host.by_category, three.host.by_category)),
        Work(type(three.work.launches)(launches), **moved),
        three.images // MOST_PACKS * packs,
        three.tokens // MOST_PACKS * packs,
        three.useful_flops / MOST_PACKS * packs,
    )


def _shared_out(
    held: dict[Any, int], model: Model, config: RunConfig, gpus: int, packs: int
) -> tuple[dict[Any, int], float]:
    """What one of several processes holds under FSDP2, and the bytes that it sends in a step: arithmetic, on top of a
    step that was run in bf16 as FSDP hands the weights to the blocks.

    Weights, gradients and states are divided by the processes that share them. Two blocks and what belongs to none are
    there whole in bf16 at once, and the gradients of two blocks in fp32.
    """
    shards = gpus // config.parallel.replicate
    blocks, module = model.blocks(), model.module
    inside = [sum(p.numel() for p in block.parameters()) for block in blocks]
    trained_inside = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks]
    whole = sum(p.numel() for p in module.parameters())
    trains = sum(p.numel() for p in trained(module).values())
    wide = 4 if config.memory.trained == "fp32" else 2
    simulated = 2 * whole  # all in bf16
    shared = dict(held)
    shared["weights"] = int(held["weights"] - simulated + (wide * trains + 2 * (whole - trains)) / shards)
    shared["gradients"] = int(wide * trains / shards)
    shared["optimizer"] = held["optimizer"] // shards
    shared["workspace"] += int(2 * (2 * max(inside) + whole - sum(inside)) + 2 * 4 * max(trained_inside))
    sent = (shards - 1) / shards * packs * (2 * 2 * whole + 4 * trains)
    if config.parallel.replicate > 1:
        sent += 2 * 4 * trains / shards
    return shared, sent


def _assumptions(config: RunConfig, gpu: Gpu, gpus: int, sharded: bool, packs: int) -> list[str]:
    """What the figures rest on, in sentences."""
    side = config.data.target_resize.max_size
    said = [
        f"every picture is {side} x {side}, the largest that the recipe trains on, with a prompt of 21 tokens",
        "operations as a GPU of Ampere or newer runs them, with liger-kernel installed (pip install 'reca-fast[gpu]')",
        f"runtime: {CONTEXT / 1e9:.1f} GB of CUDA context and {SLACK:.0%} of activations and workspace for gaps",
        f"products reach {MATMUL:.0%} of {gpu.bf16} TFLOP/s, other operations {TRAFFIC:.0%} of {gpu.bandwidth} GB/s",
        f"copies to and from the host reach {PCIE:.0%} of {gpu.pcie} GB/s and hide behind {HIDDEN:.0%} of the "
        "computation; time is an estimate, calibrated on an H200",
        f"{HOST_OVERHEAD / 1e9:.0f} GB of host memory for each process itself",
    ]
    if config.memory.compile:
        said.append("memory.compile is counted as if it were off: fewer and larger operations, the same memory")
    if packs > MOST_PACKS:
        said.append(f"{packs} packs of a GPU are reckoned from two and three that were run")
    if sharded:
        said.append("FSDP2 is arithmetic: the states divided by the GPUs, two blocks whole, gradients reduced in fp32")
    elif gpus > 1:
        said.append("each GPU holds all weights; their gradients are summed over the GPUs")
    return said


def categories() -> tuple[str, ...]:
    """The categories of a plan, in the order in which they are shown."""
    return (*CATEGORIES, "runtime")
