"""What a configuration will need on a GPU, before it is rented."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reca_fast.config import RunConfig
from reca_fast.hardware import Gpu
from reca_fast.memory import apply_levers
from reca_fast.models import Model
from reca_fast.train.room import least_bytes

from .estimate import Estimate, estimate
from .simulate import Simulated, simulate

GIB = 2**30
RUNTIME = int(0.65e9)
"""Bytes of the CUDA context, its libraries' workspaces and the kernels' code."""
SLACK = 0.02
"""Share of the peak that the allocator holds beyond what tensors take (with expandable segments)."""
HOST_RUNTIME = int(3e9)
"""Bytes that Python, torch and the CUDA libraries take in host memory."""


@dataclass(frozen=True)
class Plan:
    """What one process needs, and what all processes together do."""

    gpu: Gpu
    gpus: int
    by_category: Mapping[str, float]  # GiB on each GPU at the peak
    host_by_category: Mapping[str, float]  # GiB of host memory, of all processes of one host
    images_per_step: int
    tokens_per_step: int
    tflop_per_image: float  # executed, recomputation and encoders included
    estimate: Estimate
    host_ram: float | None  # GiB that the host has, where it is known

    @property
    def peak_gpu_gib(self) -> float:
        return sum(self.by_category.values())

    @property
    def peak_host_gib(self) -> float:
        return sum(self.host_by_category.values())

    @property
    def gpu_gib(self) -> float:
        """What the GPU has for programs."""
        return self.gpu.usable_bytes / GIB

    @property
    def fits(self) -> bool:
        return self.peak_gpu_gib <= self.gpu_gib and (self.host_ram is None or self.peak_host_gib <= self.host_ram)

    @property
    def step_seconds(self) -> float:
        return self.estimate.step_seconds

    @property
    def hours(self) -> float:
        """Of 1000 steps."""
        return 1000 * self.step_seconds / 3600

    def price(self, per_gpu_hour: float) -> float:
        """Of 1000 steps, in the currency that a GPU's hour is priced in."""
        return self.hours * self.gpus * per_gpu_hour

    def why_not(self) -> str:
        """What does not fit, as part of a sentence; empty when all does."""
        if self.peak_gpu_gib > self.gpu_gib:
            return f"it takes {self.peak_gpu_gib:.1f} GiB of GPU memory, and one {self.gpu.name} has {self.gpu_gib:.1f}"
        if self.host_ram is not None and self.peak_host_gib > self.host_ram:
            return f"it takes {self.peak_host_gib:.1f} GiB of host memory, and the host has {self.host_ram:.1f}"
        return ""

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON-able values."""
        return {
            "gpu": self.gpu.name,
            "gpus": self.gpus,
            "fits": self.fits,
            "peak_gpu_gib": round(self.peak_gpu_gib, 3),
            "gpu_gib": round(self.gpu_gib, 3),
            "peak_host_gib": round(self.peak_host_gib, 3),
            "by_category": {name: round(gib, 3) for name, gib in self.by_category.items()},
            "host_by_category": {name: round(gib, 3) for name, gib in self.host_by_category.items()},
            "tflop_per_image": round(self.tflop_per_image, 2),
            "step_seconds": round(self.step_seconds, 3),
            "seconds_by_part": {name: round(seconds, 3) for name, seconds in self.estimate.parts.items()},
            "images_per_step": self.images_per_step,
            "tokens_per_step": self.tokens_per_step,
            "hours_per_1000_steps": round(self.hours, 3),
            "assumptions": self.assumptions,
        }

    @property
    def assumptions(self) -> Sequence[str]:
        return [
            f"GPU memory: {RUNTIME / 1e9:.2f} GB for CUDA and its libraries, and {SLACK:.0%} that the allocator holds "
            f"beyond tensors; a {self.gpu.name} leaves {self.gpu_gib:.1f} GiB to programs.",
            f"Host memory: {HOST_RUNTIME / 1e9:.0f} GB for Python and libraries in each process. The mapped file of "
            "weights is not counted: the system drops its pages when it needs them.",
            *self.estimate.assumptions,
        ]


def may_fit(config: RunConfig, model: Model, gpu: Gpu, gpus: int = 1) -> bool:
    """Whether what a run keeps in any case leaves room on the GPU, told within a second.

    Args:
        model: on the meta device; used up.
    """
    apply_levers(model.module, model.blocks(), replace(config.memory, compile=False), config.lora)
    return sum(least_bytes(config, model, gpus).values()) < gpu.usable_bytes


def make_plan(config: RunConfig, model: Model, gpu: Gpu, gpus: int = 1, host_ram: float | None = None) -> Plan:
    """Simulate a step and add up what it needs.

    Args:
        config: of the run; `data.packs_per_step` is a multiple of `gpus`.
        model: on the meta device; used up.
        gpus: how many processes train together, one on each GPU, all on one host.
        host_ram: GiB of host memory; None where it does not matter.

    Raises:
        UserError: no picture fits into a pack, or a lever cannot be pulled.
    """
    packs = config.data.packs_per_step // gpus
    simulated = simulate(config, model, packs, gpus)
    return Plan(
        gpu=gpu,
        gpus=gpus,
        by_category=_on_gpu(simulated),
        host_by_category={
            "runtime": gpus * HOST_RUNTIME / GIB,
            **{name: gpus * size / GIB for name, size in simulated.host.by_category.items() if size},
        },
        images_per_step=simulated.images * gpus,
        tokens_per_step=simulated.tokens * gpus,
        tflop_per_image=simulated.work.flops / simulated.images / 1e12,
        estimate=estimate(simulated, config, gpu, gpus),
        host_ram=host_ram,
    )


def _on_gpu(simulated: Simulated) -> dict[str, float]:
    tensors: dict[str, float] = {name: size / GIB for name, size in simulated.device.by_category.items() if size}
    return {**tensors, "allocator": SLACK * sum(tensors.values()), "runtime": RUNTIME / GIB}
