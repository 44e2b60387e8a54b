"""Where the device's time goes: the kernels of each operation of ours, and of a step of four real-width layers."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from bench.measure import choose_shapes, fresh, under
from bench.ops import NAMES, case_of

from .bagel import training
from .report import Report, free

SHOWN = 30  # kernels of the step that take longest
OF_AN_OPERATION = 6


def hand_in(report: Report) -> None:
    report.attempt("step", step, report)
    for name in NAMES:
        report.attempt(name, operation, report, name)


def step(report: Report) -> None:
    """Forward, backward and update with recomputation, on the recipe's pack."""
    with training(4, 1 if report.rehearsal else 8, report.device, recompute=True) as work:

        def once() -> None:
            for phase in work.phases.values():
                phase()

        slowest_kernels(report, "4 layers, recomputed", once, SHOWN)


def operation(report: Report, name: str) -> None:
    """Forward and backward at the real size; ours is Triton on a GPU, plain torch in a rehearsal."""
    case = case_of(name)
    shape = choose_shapes(case, ["small"] if report.rehearsal else []).timed
    ours = case.ours if case.compile is None or report.rehearsal else under("triton", case.ours)
    inputs = fresh(case, shape, torch.bfloat16, report.device)
    slowest_kernels(report, name, lambda: ours(inputs), OF_AN_OPERATION)


def slowest_kernels(report: Report, name: str, once: Callable[[], object], shown: int) -> None:
    """The kernels of one run that take longest, by name and launches, and the sum of all."""
    once()
    free(report.device)
    gpu = not report.rehearsal
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        once()
        if gpu:
            torch.cuda.synchronize()
    took = {
        event.key: (event.self_device_time_total if gpu else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
        if not gpu or event.self_device_time_total > 0  # what the host alone did
    }
    report.figure(f"{name}: all kernels", sum(time for time, _ in took.values()) / 1e3, "ms")
    for kernel, (time, count) in sorted(took.items(), key=lambda item: -item[1][0])[:shown]:
        report.figure(f"{name}: {count} x {kernel[:120]}", time / 1e3, "ms")
