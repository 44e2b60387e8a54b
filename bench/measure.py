"""One operation in the hands of everyone who can do it: do they agree, what do they move, how long do they take."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpus import Gpu, predicted_seconds
from bench.ops.case import Case, Inputs, Step
from bench.timing import interleaved
from bench.traffic import Traffic, counting
from reca_fast.kernels.common.implementation import kernels
from reca_fast.kernels.common.optional_triton import INSTALLED

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 4e-2}
"""Largest difference from the authors' sequence, as a share of each result's root mean square."""

OURS = ("eager", "reference", "ours")  # what must run everywhere; a peer may not

Row = dict[str, Any]


@dataclass(frozen=True)
class Shapes:
    """What one operation is measured at."""

    label: str
    timed: Mapping[str, int]  # by the GPU, or by the prediction
    counted: Mapping[str, int]  # in the interpreter: as wide, with fewer rows
    on_cpu: Mapping[str, int]


def choose_shapes(case: Case, wanted: list[str]) -> Shapes:
    """The shape called `wanted`, or the real one with the sizes that `wanted` lists as key=value.

    Sizes that the small shape has in common with the real one change in both. Those that it scales down, such as rows,
    stay as they are there unless the wanted size is smaller still: what is counted is a multiple of the minimum, which
    they hardly change, and the interpreter is slow.

    Raises ValueError with one sentence for an unknown name or key, or a size that is no positive integer.
    """
    real, small = case.shapes["real"], case.shapes["small"]
    if not wanted:
        return Shapes("real", real, small, case.shapes.get("cpu", small))
    if len(wanted) == 1 and "=" not in wanted[0]:
        if wanted[0] not in case.shapes:
            raise ValueError(f"{case.name} has no shape {wanted[0]!r}; it has {', '.join(case.shapes)}")
        timed = case.shapes[wanted[0]]
        counted = {key: min(small[key], timed[key]) if small[key] != real[key] else timed[key] for key in timed}
        return Shapes(wanted[0], timed, counted, case.shapes.get("cpu", counted))
    sizes = {}
    for item in wanted:
        key, _, value = item.partition("=")
        if key not in real:
            raise ValueError(f"{case.name} has no size {key!r}; it has {', '.join(real)}")
        if not value.isdecimal() or int(value) == 0:
            raise ValueError(f"--shape {item}: expected {key}=N with a positive integer N")
        sizes[key] = int(value)
    scaled = {key: min(size, small[key]) if small[key] != real[key] else size for key, size in sizes.items()}
    counted = {**small, **scaled}
    return Shapes(" ".join(wanted), {**real, **sizes}, counted, {**case.shapes.get("cpu", small), **scaled})


def under(mode: str, step: Step) -> Step:
    """`step` with the kernels setting `mode` in force."""

    def chosen(inputs: Inputs) -> list[Tensor]:
        with kernels(mode):
            return step(inputs)

    return chosen


def providers(case: Case, gpu: bool, compile_eager: bool = True) -> dict[str, Step]:
    """Name -> forward and backward; "ours" is the Triton kernels, "reference" our plain torch."""
    ways = {"eager": case.eager}
    if case.compile is None:  # no kernels of ours: a library's
        ways["ours"] = case.ours
    else:
        ways["reference"] = under("reference", case.ours)
        if INSTALLED:
            ways["ours"] = under("triton", case.ours)
    ways |= case.peers
    if gpu and compile_eager:
        ways["torch.compile"] = torch.compile(case.eager)
    return ways


def fresh(case: Case, shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Inputs:
    return case.inputs(shape, dtype, device, torch.Generator(device).manual_seed(0))


def disagreement(got: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error over all results, each relative to its own size (root mean square)."""
    worst = 0.0
    for ours, theirs in zip(got, expected, strict=True):
        size = theirs.double().square().mean().sqrt().clamp(min=1e-12)
        error = (ours.double() - theirs.double()).square().mean().sqrt() / size
        worst = max(worst, error.item() if torch.isfinite(error) else float("inf"))
    return worst


def count(case: Case, step: Step, shape: Mapping[str, int], ours: bool) -> Row:
    """Traffic of one implementation, as multiples of the minimum.

    In bf16; in fp16 for a peer that computes in bf16 without upcasting, which the interpreter refuses.
    """
    try:
        traffic = _traffic(case, step, shape, torch.bfloat16)
    except Exception:
        if ours:
            raise
        traffic = _traffic(case, step, shape, torch.float16)
    least = case.minimum(shape, torch.bfloat16)
    return {
        "launches": traffic.launches,
        "matmuls": traffic.matmuls,
        "bytes": traffic.bytes,
        "bytes_over_minimum": traffic.bytes / least.bytes,
        "unique_over_minimum": traffic.unique_bytes / least.bytes,
        "flops_over_minimum": traffic.flops / least.flops if least.flops else None,
    }


def _traffic(case: Case, step: Step, shape: Mapping[str, int], dtype: torch.dtype) -> Traffic:
    inputs = fresh(case, shape, dtype, torch.device("cpu"))
    with counting() as traffic:
        step(inputs)
    return traffic


def compiled(case: Case, target: int) -> list[Row]:
    """What the assembler made, on sm_`target`, of the kernels that ours launches in bf16; all that others may launch is
    compiled in `tests/kernels/test_compiled.py`.
    """
    if case.compile is None:
        return []
    import triton

    from bench.aot import assembled

    inputs = fresh(case, case.shapes["small"], torch.bfloat16, torch.device("cpu"))
    with triton.knobs.runtime.scope():  # CPU tensors are taken as in the interpreter; nothing runs on them
        triton.knobs.runtime.interpret = True
        return [made.row() for made in assembled(lambda: under("triton", case.ours)(inputs), target)]


def failure(name: str, error: Exception) -> Row:
    """A row's end for who raised an error: a peer may need what is not here, ours must run."""
    if type(error).__name__ == "InterpreterError":
        said = "needs a GPU; Triton's interpreter cannot run its kernels"
    else:
        first = (str(error).strip().splitlines() or [""])[0][:160]
        said = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
    return {"gate": None, "failed" if name in OURS else "skipped": said}


def judged(row: Row, got: list[Tensor], expected: list[Tensor] | None, dtype: torch.dtype) -> None:
    """Whether results agree with the authors' sequence; None where that has failed."""
    row["error"] = None if expected is None else disagreement(got, expected)
    row["gate"] = None if expected is None else row["error"] <= TOLERANCE[dtype]


def measure_without_gpu(case: Case, shapes: Shapes, gpu: Gpu) -> Iterator[Row]:
    """One row per implementation: gate, CPU time, traffic, predicted time. They are timed in turns, so all rows come
    together.
    """
    cpu, expected = torch.device("cpu"), None
    ways: dict[str, Row] = {}
    timed: dict[str, Callable[[], object]] = {}
    for name, step in providers(case, gpu=False).items():
        row: Row = {"op": case.name, "provider": name, "shape": shapes.label, "sizes": dict(shapes.timed)}
        ways[name] = row
        try:
            # bf16 on this CPU is emulated and every implementation rounds elsewhere: agreement is checked in fp32.
            with counting() as traffic:
                got = step(fresh(case, shapes.counted, torch.float32, cpu))
            expected = got if name == "eager" else expected
            judged(row, got, expected, torch.float32)
            if row["gate"] and case.compile is not None:
                row |= count(case, step, shapes.counted, ours=name in OURS)
        except Exception as error:
            row |= failure(name, error)
            continue
        if not traffic.interpreted:  # what the interpreter takes says nothing
            inputs = fresh(case, shapes.on_cpu, torch.float32, cpu)
            timed[name] = partial(step, inputs)
    for name, timing in interleaved(timed, cpu).items() if timed else ():
        ways[name]["cpu_ms"] = asdict(timing)
    least = case.minimum(shapes.timed, torch.bfloat16)
    for row in ways.values():
        if "bytes_over_minimum" in row:
            flops, moved = (row["flops_over_minimum"] or 0) * least.flops, row["unique_over_minimum"] * least.bytes
            seconds, limit = predicted_seconds(gpu, moved, flops, row["launches"])
            row |= {"gpu": gpu.name, "predicted_ms": seconds * 1e3, "limited_by": limit}
            row |= {"real_bytes": moved, "real_minimum": least.bytes}
        yield row


def measure_on_gpu(
    case: Case, shapes: Shapes, gpu: Gpu, device: torch.device, ways: Mapping[str, Step], budget: float = 1.0
) -> Iterator[Row]:
    """One row per implementation, as soon as it is measured: gate, GPU time with cold caches, share of the measured
    peak, peak memory.

    Args:
        ways: who is measured, of `providers`; the authors' sequence is run in any case, to compare with.
        budget: seconds for the timing of each.
    """
    dtype = torch.bfloat16
    inputs, expected = fresh(case, shapes.timed, dtype, device), None
    least = case.minimum(shapes.timed, dtype)
    bound, limit = predicted_seconds(gpu, least.bytes, least.flops, 0)
    for name, step in {"eager": case.eager, **ways}.items():
        row: Row = {"op": case.name, "provider": name, "shape": shapes.label, "sizes": dict(shapes.timed)}
        row |= {"gpu": gpu.name, "limited_by": limit}
        try:
            got = step(inputs)
            expected = got if name == "eager" else expected
            judged(row, got, expected, dtype)
            del got
            if name not in ways:
                continue
            if row["gate"] is not False:
                timing = interleaved({name: partial(step, inputs)}, device, budget=budget)[name]
                row |= {"gpu_ms": asdict(timing), "share_of_peak": bound * 1e3 / timing.p50}
                row |= {"real_bytes": least.bytes, "real_minimum": least.bytes, "real_flops": least.flops}
        except Exception as error:
            row |= failure(name, error)
        yield row
