"""GPUs that a prediction can be made for (data sheets, dense bf16), and the peaks of the one that is here."""

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """Peaks of one GPU."""

    name: str
    target: int  # sm_ number, for the compiler
    bandwidth: float  # bytes / s
    flops: float  # bf16 FLOP / s with fp32 accumulation


GPUS = {
    "a100": Gpu("A100-80GB SXM", 80, 2.039e12, 312e12),
    "rtx4090": Gpu("RTX 4090", 89, 1.008e12, 165e12),
    "l40s": Gpu("L40S", 89, 0.864e12, 362e12),
    "h100": Gpu("H100 SXM", 90, 3.35e12, 989e12),
    "b200": Gpu("B200", 100, 8.0e12, 2250e12),
}
LAUNCH_SECONDS = 4e-6
"""What one more kernel costs the host in an eager program: an assumption of the predictions, not a measurement."""


def predicted_seconds(gpu: Gpu, bytes_moved: float, flops: float, launches: int) -> tuple[float, str]:
    """A lower bound from the roofline and what sets it: "memory", "products" or "launches", whichever takes longest."""
    parts = {
        "memory": bytes_moved / gpu.bandwidth,
        "products": flops / gpu.flops,
        "launches": launches * LAUNCH_SECONDS,
    }
    slowest = max(parts, key=lambda name: parts[name])
    return parts[slowest], slowest


def measured_peaks(device: torch.device) -> Gpu:
    """Bandwidth of a large copy and speed of a large bf16 product on the GPU that is here (about a second)."""
    size, side = 2**29, 8192
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    copy, product = _fastest(lambda: target.copy_(source)), _fastest(lambda: a @ b)
    major, minor = torch.cuda.get_device_capability(device)
    return Gpu(torch.cuda.get_device_name(device), 10 * major + minor, 2 * size / copy, 2 * side**3 / product)


def _fastest(run, repeats: int = 10) -> float:
    """Seconds of the fastest of some runs on the GPU."""
    best = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
