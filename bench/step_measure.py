"""One way of taking a step, measured in a process of its own: time, memory, arithmetic, and the machine's own rate."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from bench.ways import Model, Work
from reca_fast.plan.tracker import MemoryTracker

SQUARE = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices whose product tells what a device can do."""


def _attention(q, k, v, *args, **more) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward(grad, q, k, v, *args, **more) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


FORMULAS = flop_registry | {  # torch's own, which lack its fused kernel for CPUs
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Flops(TorchDispatchMode):
    """Counts the floating-point operations that are executed inside, those that are computed twice included."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs or {}, out_val=out)
        return out


def measure(model: Model, way: str, work: Work, steps: int) -> dict[str, Any]:
    """The figures of one of a model's ways. Times are CPU seconds, on a GPU the device's; before each step the rate of
    a matrix product is taken, so that a change in the machine's load meets both.

    Returns:
        seconds, wall_s: one number a step; share: of the machine's rate that the step's arithmetic came to, a step;
        loss: of the first step, before any update; flop: of one step; peak_bytes, weights_bytes: the most that was
        held, and what was held before the first step; host_bytes: the most in host memory; by_category: of the most,
        on a CPU.
    """
    if work.device.type == "cuda":
        return _on_gpu(model, way, work, steps)
    tracker, flops = MemoryTracker(), Flops()
    with tracker:
        step = model.build(model.WAYS[way], work)
        weights = tracker.now().total
        loss = step()
        tracker.forget_peak()
        with flops:
            step()
        peak, host = tracker.peak(), tracker.peak(host=True)
    del tracker
    product = _product(work)
    seconds, wall, share = [], [], []
    for _ in range(steps):
        rate = _flop(work) / _cpu_seconds(product)[0]
        took, waited = _cpu_seconds(step)
        seconds.append(took)
        wall.append(waited)
        share.append(flops.total / took / rate)
    return {
        **_figures(way, seconds, wall, share, loss, flops.total),
        "peak_bytes": peak.total,
        "host_bytes": host.total,
        "weights_bytes": weights,
        "by_category": dict(peak.by_category),
    }


def _on_gpu(model: Model, way: str, work: Work, steps: int) -> dict[str, Any]:
    step, flops = model.build(model.WAYS[way], work), Flops()
    weights = torch.cuda.memory_allocated()
    loss = step()
    with flops:
        step()
    torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated()
    product = _product(work)
    seconds, wall, share = [], [], []
    for _ in range(steps):
        rate = _flop(work) / _gpu_seconds(product)[0]
        took, waited = _gpu_seconds(step)
        seconds.append(took)
        wall.append(waited)
        share.append(flops.total / took / rate)
    figures = _figures(way, seconds, wall, share, loss, flops.total)
    return {**figures, "peak_bytes": peak, "host_bytes": None, "weights_bytes": weights, "by_category": None}


def _figures(way: str, seconds: Any, wall: Any, share: Any, loss: float, flop: int) -> dict[str, Any]:
    return {"way": way, "seconds": seconds, "wall_s": wall, "share": share, "loss": loss, "flop": flop}


def _flop(work: Work) -> int:
    return 2 * SQUARE[work.device.type] ** 3


def _product(work: Work) -> Callable[[], object]:
    side = SQUARE[work.device.type]
    a, b = (torch.randn(side, side, device=work.device).to(work.dtype) for _ in range(2))
    a @ b
    return lambda: a @ b


def _cpu_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds of all threads, seconds)."""
    start, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - start, time.perf_counter() - wall


def _gpu_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """(seconds between two events on the device, the host's)."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    wall = time.perf_counter()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, time.perf_counter() - wall
