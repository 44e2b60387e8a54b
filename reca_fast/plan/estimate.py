"""How long a step takes on a GPU: every operation by the slower of its arithmetic and its memory traffic."""

from dataclasses import dataclass

import torch

from reca_fast.config import RunConfig
from reca_fast.hardware import Gpu

from .simulate import Simulated
from .work import Launch

MATMUL = 0.6
"""Share of the peak that large matrix products and attention reach together."""
TRAFFIC = 0.6
"""Share of a bandwidth that operations without products, and exchanges between GPUs, reach. Both shares are so chosen
that BAGEL's step of eight pictures of 1024 x 1024 takes the 3.8 s that an H200 needed, the VAE's 0.23 s included
(bench/results/on_gpu_h200.jsonl).
"""
LAUNCH = 4e-6
"""Seconds that the shortest operation takes."""
SINGLE = 1 / 15
"""fp32 products, which take no tensor cores, as a share of the bf16 peak."""
PCIE = 0.8
"""Share of the PCIe rate in the table that copies beside computation reach."""
NETWORK = 40e9
"""Bytes per second to and from each GPU between hosts, where there are several: a 400 Gbit/s port for each."""
HIDDEN = 0.85
"""Share of the computation behind which transfers can hide: the first block of a pass waits for its weights."""
GPUS_PER_HOST = 8


@dataclass(frozen=True)
class Estimate:
    """How long a step takes. An estimate, not a measurement."""

    step_seconds: float
    parts: dict[str, float]
    """Seconds by kind: computation, and transfers, which overlap with it: so they add up to more than the step."""
    assumptions: list[str]


def estimate(simulated: Simulated, config: RunConfig, gpu: Gpu, gpus: int = 1) -> Estimate:
    """The time of a step on a kind of GPU.

    Every operation takes the longest of its products at the rate that the GPU reaches, its bytes at the bandwidth that
    it reaches, and a launch. Copies between host and device, and between GPUs, run beside the computation.

    Args:
        simulated: the step of one process.
        config: of the run.
        gpu: that each process has.
        gpus: that train together.
    """
    work = simulated.work
    parts = {"products": 0.0, "memory traffic": 0.0, "launches": 0.0}
    for launch, times in work.launches.items():
        kind, seconds = _seconds(launch, gpu)
        parts[kind] += seconds * times
    computation = sum(parts.values())
    pcie = gpu.pcie * 1e9 * PCIE
    parts["host and device"] = max(work.to_device, work.to_host) / pcie
    parts["between GPUs"] = simulated.exchanged / _link(gpu, gpus) if gpus > 1 else 0.0
    longest = max(parts["host and device"], parts["between GPUs"])
    total = max(computation, longest + (1 - HIDDEN) * computation) if longest else computation
    return Estimate(total, parts, _assumptions(config, gpu, gpus))


def _link(gpu: Gpu, gpus: int) -> float:
    """Bytes per second that a GPU sends to the others in a collective operation."""
    inside = (gpu.nvlink or gpu.pcie / 2) * 1e9 * TRAFFIC
    return min(inside, NETWORK * TRAFFIC) if gpus > GPUS_PER_HOST else inside


def _assumptions(config: RunConfig, gpu: Gpu, gpus: int) -> list[str]:
    said = [
        f"Time: products reach {MATMUL:.0%} of {gpu.bf16} TFLOP/s in bf16, other operations {TRAFFIC:.0%} of "
        f"{gpu.bandwidth} GB/s, no operation is shorter than {LAUNCH * 1e6:.0f} us; so calibrated that BAGEL's step of "
        "eight pictures of 1024 x 1024 takes the 3.8 s measured on an H200. An estimate.",
        f"Copies between host and device reach {PCIE:.0%} of {gpu.pcie} GB/s and hide behind {HIDDEN:.0%} of the "
        "computation; both directions at once.",
        "Operations are those of a GPU of Ampere or newer with liger-kernel installed (pip install 'reca-fast[gpu]'). "
        "The data never keep it waiting.",
    ]
    if gpus > 1:
        link = f"NVLink at {gpu.nvlink} GB/s" if gpu.nvlink else f"PCIe at {gpu.pcie / 2:.0f} GB/s"
        network = f", {NETWORK / 1e9:.0f} GB/s for each GPU between hosts" if gpus > GPUS_PER_HOST else ""
        said.append(f"GPUs exchange weights and gradients over {link}{network}, {TRAFFIC:.0%} of it reached.")
    if config.memory.compile:
        said.append("memory.compile is counted as if it were off: the same products and memory, less traffic.")
    return said


def _seconds(launch: Launch, gpu: Gpu) -> tuple[str, float]:
    """What bounds an operation, and how long it takes."""
    bounds = {
        "products": launch.flops / _rate(launch.dtype, gpu),
        "memory traffic": launch.nbytes / (gpu.bandwidth * 1e9 * TRAFFIC),
        "launches": LAUNCH,
    }
    kind = max(bounds, key=lambda name: bounds[name])
    return kind, bounds[kind]


def _rate(dtype: torch.dtype, gpu: Gpu) -> float:
    """FLOP/s of products of these numbers that can be reached."""
    peak = float(gpu.bf16)
    if dtype in (torch.float32, torch.float64):
        peak *= SINGLE
    elif dtype == torch.int8:
        peak = float(gpu.int8)
    elif dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        peak = float(gpu.fp8 or gpu.bf16)
    return peak * 1e12 * MATMUL
