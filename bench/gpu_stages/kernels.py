"""Our kernels on a GPU: right in every dtype, the same bits every time, and never waiting for the host.

The checks are also those of `tests/kernels/test_on_gpu.py`. With the CPU in the GPU's place Triton's interpreter stands
in for one kernel, and plain torch for the others, which the interpreter is too slow for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bench.measure import fresh, under
from bench.ops import WITH_KERNELS, case_of
from bench.ops.case import Case, Inputs, Step
from reca_fast.kernels import flow_matching_loss, qk_norm_rope, rms_norm, swiglu
from reca_fast.kernels.common.interpreter import interpreting
from reca_fast.memory.matmul import CAPABLE
from reca_fast.train.handover import Handover
from reca_fast.train.step import train_step

from .report import Report
from .tiny import prepare, tiny_checkpoint

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = ("adaln_modulate",)
WITHOUT_WAITING: dict[str, dict[str, Any]] = {
    "default": {},
    "recompute": {"recompute": "blocks"},
    "joint": {"freeze_und": False},
    "int8": {"matmul": "int8"},
    **({"fp8": {"matmul": "fp8"}} if find_spec("torchao") else {}),
}
"""Title of a step -> its levers and the model's options."""
REPEATS = 20
LONG_SUMS = 2e-5
"""Relative error of a sum over thousands of programs in fp32."""


def hand_in(report: Report) -> None:
    device = report.device
    for name in WITH_KERNELS:
        for dtype in DTYPES:
            title = f"{name}, {str(dtype).removeprefix('torch.')}"
            report.attempt(title, accuracy, report, title, case_of(name), dtype)
    for dtype in DTYPES:
        report.attempt(f"rms_norm, {dtype}", rows_accuracy, report, dtype)
    for name in WITH_KERNELS:
        title = f"{name}: the same bits {REPEATS} times"
        report.attempt(title, lambda: report.equal(title, differing_runs(case_of(name), device), 0, "runs that differ"))  # noqa: B023
    report.attempt("sums of many programs", many_programs, report)
    if not report.rehearsal:
        title = "two streams at once"
        report.attempt(title, lambda: report.equal(title, differing_on_two_streams(device), 0, "results that differ"))
    report.attempt("labels on the device", without_waiting_for_labels, report)
    for name, options in WITHOUT_WAITING.items():
        oldest, _ = CAPABLE.get(name, ((0, 0), ""))
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < oldest:
            continue
        report.attempt(f"{name}: a step that waits for nothing", step_without_waiting, report, name, options)


def accuracy(report: Report, title: str, case: Case, dtype: torch.dtype) -> None:
    """The worst of all outputs and gradients, over what it may be."""
    shares = shares_of_budget(case, dtype, report.device)
    report.at_most(title, max(shares), 1.0, "of the allowed error")


def launched(case: Case, device: torch.device) -> Step:
    """Forward and backward through the kernels; through what stands in for them on a CPU."""
    if device.type == "cuda":
        return under("triton", case.ours)
    if case.name not in INTERPRETED:
        return under("reference", case.ours)

    def interpreted(inputs: Inputs) -> list[Tensor]:
        with interpreting():
            return under("triton", case.ours)(inputs)

    return interpreted


def widened(inputs: Inputs) -> Inputs:
    """The same numbers in float64."""

    def wide(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().double().requires_grad_(value.requires_grad)
        return torch.float64 if isinstance(value, torch.dtype) else value

    return {name: wide(value) for name, value in inputs.items()}


def shares_of_budget(case: Case, dtype: torch.dtype, device: torch.device) -> list[float]:
    """Per output and gradient: its error against float64, over 4 x that of the authors' sequence in `dtype` plus 8
    epsilon. So the budget follows what the dtype can do.
    """
    inputs = fresh(case, case.shapes["small"], dtype, device)
    truth = under("reference", case.ours)(widened(inputs))
    return budget_shares(launched(case, device)(inputs), truth, case.eager(inputs), dtype)


def budget_shares(got: list[Tensor], truth: list[Tensor], plain: list[Tensor], dtype: torch.dtype) -> list[float]:
    shares = []
    for x, exact, base in zip(got, truth, plain, strict=True):
        size = exact.double().square().mean().sqrt()
        error, allowed = ((y.double() - exact.double()).square().mean().sqrt() for y in (x, base))
        share = (error / (4 * allowed + 8 * torch.finfo(dtype).eps * size).clamp(min=1e-30)).item()
        shares.append(share if share == share else float("inf"))
    return shares


def rows_accuracy(report: Report, dtype: torch.dtype) -> None:
    """rms_norm and swiglu, whose kernels are Liger's where it is installed."""
    draw = torch.Generator().manual_seed(0)
    values = [torch.randn(40, 3584, generator=draw).to(report.device, dtype) for _ in range(3)]
    weight = torch.randn(3584, generator=draw).to(report.device, dtype)

    def plain_norm(x: Tensor, w: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype) * w

    ways = {
        "rms_norm": (rms_norm, plain_norm, (values[0], weight)),
        "swiglu": (
            lambda gate, up: swiglu(gate * 1, up * 1, reuse_inputs=True),
            lambda gate, up: torch.nn.functional.silu(gate) * up,
            (values[0], values[1]),
        ),
    }
    for name, (ours, plain, given) in ways.items():

        def results(function, given: tuple[Tensor, ...], upstream: Tensor) -> list[Tensor]:
            leaves = [x.detach().requires_grad_() for x in given]
            out = function(*leaves)
            return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]

        wide, grad = tuple(x.double() for x in given), values[2]
        shares = budget_shares(
            results(ours, given, grad), results(plain, wide, grad.double()), results(plain, given, grad), dtype
        )
        title = f"{name}, {str(dtype).removeprefix('torch.')}"
        report.at_most(title, max(shares), 1.0, "of the allowed error")


def differing_runs(case: Case, device: torch.device, repeats: int = REPEATS) -> int:
    """How many of `repeats` runs differ in any bit from the first: sums over programs have a fixed order, whichever
    program finishes last.
    """
    inputs, ours = fresh(case, case.shapes["small"], torch.bfloat16, device), launched(case, device)
    first = ours(inputs)
    repeats = repeats if device.type == "cuda" else 1
    return sum(not all(map(torch.equal, first, ours(inputs))) for _ in range(repeats))


def many_programs(report: Report) -> None:
    for name, error in errors_of_long_sums(report.device).items():
        report.at_most(f"sums of many programs: {name}", error, LONG_SUMS, "of its size")


def errors_of_long_sums(device: torch.device) -> dict[str, float]:
    """Relative errors of sums that thousands of programs leave parts of, and the last one adds up."""
    tokens, draw = 36_864 if device.type == "cuda" else 512, torch.Generator(device).manual_seed(0)
    latents, prediction = (torch.randn(tokens, 64, device=device, generator=draw) for _ in range(2))
    loss = flow_matching_loss(
        prediction, latents, torch.zeros(tokens, device=device), noise=torch.zeros_like(latents)
    ).double()
    expected = (prediction.double() + latents.double()).square().mean()
    errors = {"flow_matching_loss": ((loss - expected).abs() / expected).item()}

    q, k = (torch.randn(tokens, heads, 128, device=device, generator=draw) for heads in (4, 2))
    weights = [torch.ones(128, device=device, requires_grad=True) for _ in "qk"]
    cos, sin = torch.ones(tokens, 128, device=device), torch.zeros(tokens, 128, device=device)
    # Squares, so that nothing cancels in the sums.
    upstream = [x.detach().clone() for x in (q, k)]
    got = torch.autograd.grad(qk_norm_rope(q, k, *weights, cos, sin), weights, upstream)
    for name, gradient, x in zip(("q_weight", "k_weight"), got, (q.double(), k.double()), strict=True):
        exact = (x * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).sum((0, 1))
        errors[f"qk_norm_rope, {name}"] = ((gradient.double() - exact).norm() / exact.norm()).item()
    return errors


def differing_on_two_streams(device: torch.device) -> int:
    """How many of 40 results on two streams at once differ from that of one alone: each has counters of its own."""
    case = case_of("flow_matching")
    inputs, ours = fresh(case, case.shapes["small"], torch.bfloat16, device), under("triton", case.ours)
    expected, streams = ours(inputs), [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    got = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                got.append(ours(inputs))
    torch.cuda.synchronize()
    return sum(not all(torch.equal(x, y) for x, y in zip(results, expected, strict=True)) for results in got)


@contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    """Inside, an operation that makes the host wait for the GPU raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def without_waiting_for_labels(report: Report) -> None:
    error = error_with_labels_on_the_device(report.device)
    report.at_most("labels on the device", error, 1.0, "of the allowed error")


def error_with_labels_on_the_device(device: torch.device) -> float:
    """Nothing waits for them, and rows that are ignored take no part. The error as a share of what it may be."""
    case = case_of("fused_linear_cross_entropy")
    inputs, ours = fresh(case, case.shapes["small"], torch.bfloat16, device), launched(case, device)
    truth, plain = under("reference", case.ours)(widened(inputs)), case.eager(inputs)
    inputs["labels"] = inputs["labels"].to(device)
    with waiting_is_an_error(device):
        got = ours(inputs)
    return max(budget_shares(got, truth, plain, torch.bfloat16))


def step_without_waiting(report: Report, name: str, options: dict[str, Any]) -> None:
    """A whole training step, with the copies of its batch on a stream of their own, after one that compiled what it
    needs. The losses are those of the batch that is copied in the step itself.
    """
    with tiny_checkpoint() as folder:
        step = prepare(folder, report.device, **options)
        other = prepare(folder, report.device, **options)
        step()
        handover = Handover(report.device)
        packs = [replace(step.pack, copy=handover.copy(step.pack.batch))]
        with waiting_is_an_error(report.device):
            stats = train_step(step.run, handover.take(iter([packs])))
        other()
        expected = other()
    norm = stats.grad_norm.item()
    report.figure(f"{name}: a step that waits for nothing", norm, "gradient norm", expected="no error", ok=norm > 0)
    error = ((stats.sums - expected.sums).abs() / expected.sums).max().item()
    report.at_most(f"{name}: a batch copied ahead", error, 1e-3, "relative difference of the losses")
