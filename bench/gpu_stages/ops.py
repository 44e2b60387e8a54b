"""Achieved bandwidth (or arithmetic) of every operation at its real size: ours, the authors' sequence, Liger."""

from collections.abc import Callable

from bench.gpus import GPUS, Gpu, measured_peaks
from bench.measure import choose_shapes, measure_on_gpu, providers
from bench.ops import NAMES, case_of

from .report import Report, free

FASTER = 1.05
"""Ours takes at most this many times what the authors' sequence takes; the rest is the measurement's own noise."""


def hand_in(report: Report) -> None:
    side_by_side(report, lambda name: name in ("eager", "ours", "liger"))


def side_by_side(report: Report, wanted: Callable[[str], bool], needs: float = 0.0) -> None:
    """Every operation in the hands of those who are wanted; `needs`: seconds that one of them takes."""
    card = GPUS["h100"] if report.rehearsal else measured_peaks(report.device)
    free(report.device)
    for name in NAMES:
        report.attempt(name, measure, report, name, wanted, card, needs=needs)


def measure(report: Report, name: str, wanted: Callable[[str], bool], card: Gpu) -> None:
    """Per implementation: milliseconds, then bytes or FLOPs per second of what has to be moved or computed."""
    case = case_of(name)
    shapes = choose_shapes(case, ["small"] if report.rehearsal else [])
    ways = {who: step for who, step in providers(case, gpu=not report.rehearsal).items() if wanted(who)}
    if report.rehearsal:
        ways.pop("liger", None)  # it runs on a GPU only; ours is played by plain torch
        ways = {who: case.ours if who == "ours" else step for who, step in ways.items()}
    times: dict[str, float] = {}
    for row in measure_on_gpu(case, shapes, card, report.device, ways, budget=0.0 if report.rehearsal else 0.25):
        who = f"{name}, {row['provider']}"
        if "gpu_ms" not in row:
            said = (
                row.get("failed") or row.get("skipped") or f"disagrees with the authors' sequence: {row['error']:.1e}"
            )
            # A peer may lack what it needs here; that is no fault of this run.
            report.figure(who, None if "failed" in row else said, ok="skipped" in row, error=row.get("failed"))
            continue
        milliseconds = times[row["provider"]] = row["gpu_ms"]["p50"]
        limit = FASTER * times["eager"] if row["provider"] == "ours" and "eager" in times else None
        if limit is None or report.rehearsal:
            report.figure(f"{who}: time", milliseconds, "ms")
        else:
            report.at_most(f"{who}: time", milliseconds, limit, "ms")
        if row["limited_by"] == "products":
            report.figure(f"{who}: useful arithmetic", row["real_flops"] / milliseconds / 1e9, "TFLOP/s")
        else:
            report.figure(f"{who}: achieved bandwidth", row["real_minimum"] / milliseconds / 1e6, "GB/s")
        report.figure(f"{who}: share of this card's peak", row["share_of_peak"], "of what it reaches at best")
        if (host := row["gpu_ms"]["host_ms"]) is not None:
            report.figure(f"{who}: host", host, "ms until all is launched")
        if (peak := row["gpu_ms"]["peak_bytes"]) is not None:
            report.figure(f"{who}: peak memory", peak / 1e6, "MB")
