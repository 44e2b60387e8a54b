"""Time and peak memory of a function, on the CPU in CPU seconds, on a GPU in GPU seconds with cold caches."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

import torch

CYCLES_PER_MS = 2_000_000
"""Of a GPU's clock, rounded up: a pause that is longer than asked for does no harm."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds at the 20th, 50th and 80th percentile; peak memory above the inputs in bytes (GPU only).

    On a GPU they are the device's own: the host had launched everything before the first kernel began, unless the
    function itself waits for the device.
    """

    p20: float
    p50: float
    p80: float
    peak_bytes: int | None = None
    host_ms: float | None = None  # the host's own, until it has launched everything (GPU only)


def _summary(milliseconds: list[float], peak: int | None = None, host: float | None = None) -> Timing:
    if len(milliseconds) == 1:
        milliseconds = milliseconds * 2
    p20, _, _, p80 = quantiles(milliseconds, n=5, method="inclusive")
    return Timing(p20, quantiles(milliseconds, n=2, method="inclusive")[0], p80, peak, host)


def interleaved(
    runs: dict[str, Callable[[], object]], device: torch.device, budget: float = 1.0, least: int = 5
) -> dict[str, Timing]:
    """Time several ways of doing one thing, in turns, so that a change in the machine's load meets all of them.

    Args:
        budget: seconds for all of them together, as far as `least` rounds allow; one warm-up round comes before.
    """
    for run in runs.values():
        run()
    gpu = device.type == "cuda"
    hosts = {name: _host_ms(run) if gpu else None for name, run in runs.items()}
    once = _once_on_gpu(device, max(filter(None, hosts.values()), default=0)) if gpu else _once_on_cpu
    took: dict[str, list[float]] = {name: [] for name in runs}
    end = time.monotonic() + budget
    while len(next(iter(took.values()))) < least or time.monotonic() < end:
        for name, run in runs.items():
            took[name].append(once(run))
    peaks = {name: _peak(run, device) for name, run in runs.items()}
    return {name: _summary(values, peaks[name], hosts[name]) for name, values in took.items()}


def _once_on_cpu(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return (time.process_time() - start) * 1e3


def _host_ms(run: Callable[[], object]) -> float:
    """The least of three: how long the host is busy with one run on an idle device."""
    took = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        took.append((time.perf_counter() - start) * 1e3)
    return min(took)


def _once_on_gpu(device: torch.device, head_start: float) -> Callable[[Callable[[], object]], float]:
    """Events around one run; before it, twice the L2 cache is overwritten, and the device pauses for longer than the
    host needs (`head_start` ms), so that the time between the events is the device's and not the host's.
    """
    flush = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
    pause = int((2 * head_start + 0.2) * CYCLES_PER_MS)

    def once(run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        torch.cuda._sleep(pause)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    return once


def _peak(run: Callable[[], object], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device) - before
