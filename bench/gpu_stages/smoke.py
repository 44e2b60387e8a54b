"""One training step of a tiny BAGEL per setting. Every gradient is compared with that of fp32 on the CPU.

Two kinds of mistakes are told apart: fp32 on the GPU must agree closely, and bf16 as far as its rounding allows.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.kernels import available_backends

from .report import Report
from .tiny import gradients_of, prepare, tiny_checkpoint

TOLERANCE = {"fp32": 2e-3, "bf16": 1.2e-1}
"""Norm of a gradient's error over its own norm; the worst tensor counts. In bf16 the CPU itself is at 0.05."""
TOLERANCE_ALL = {"fp32": 5e-4, "bf16": 3e-2}
"""The same over all gradients together."""


COMPILING = 40.0
"""Seconds that torch.compile takes for the two layers, forward and backward."""


def settings(device: torch.device) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of the model, the likeliest first; torch.compile, which takes longest, last."""
    yield "default", {}
    yield "recompute", {"recompute": "blocks"}
    yield "joint", {"freeze_und": False}
    yield "fp32", {"precision": "fp32"}
    yield "reference kernels", {"kernels": "reference"}
    for name, why_not in available_backends(device, torch.bfloat16).items():
        if why_not is None:
            yield f"attention {name}", {"attention": name}
    yield "joint, recompute", {"freeze_und": False, "recompute": "blocks"}
    if device.type == "cuda":
        yield "compile", {"compile": True}
    yield "compile, joint, recompute", {"compile": True, "freeze_und": False, "recompute": "blocks"}


def hand_in(report: Report) -> None:
    torch.backends.cudnn.allow_tf32 = False  # the VAE's convolutions in fp32 would be those of TF32
    with tiny_checkpoint() as folder:

        @cache
        def truth(joint: bool) -> tuple[dict[str, Tensor], dict[str, float], float]:
            options: dict[str, Any] = {"precision": "fp32", "kernels": "reference", "attention": "sdpa"}
            return gradients_of(prepare(folder, torch.device("cpu"), **options, freeze_und=not joint))

        for name, options in settings(report.device):
            needs = COMPILING if options.get("compile") else 0.0
            report.attempt(name, compare, report, name, options, folder, truth, needs=needs)


def compare(report: Report, name: str, options: dict[str, Any], folder: Path, truth) -> None:
    """Four figures: the worst gradient, all gradients together, the loss, weights without a gradient or a step."""
    expected, losses, _ = truth(not options.get("freeze_und", True))
    compiler = "eager" if report.rehearsal else "inductor"
    torch._dynamo.reset()
    got, loss, moved = gradients_of(prepare(folder, report.device, compiler, **options))
    precision = options.get("precision", "bf16")
    empty = sorted({n for n in expected if n not in got or not got[n].any()} | (expected.keys() ^ got.keys()))
    report.equal(f"{name}: weights without a gradient", ", ".join(empty[:5]) or "none", "none")
    errors = {n: ((got[n] - g).norm() / g.norm().clamp(min=1e-12)).item() for n, g in expected.items() if n in got}
    worst = max(errors, key=lambda n: errors[n] if errors[n] == errors[n] else float("inf"))
    report.at_most(f"{name}: worst gradient ({worst})", errors[worst], TOLERANCE[precision], "of its norm")
    shared = [(got[n], g) for n, g in expected.items() if n in got]
    error = sum((a - b).double().square().sum().item() for a, b in shared) ** 0.5
    size = sum(b.double().square().sum().item() for _, b in shared) ** 0.5
    report.at_most(f"{name}: all gradients", error / size, TOLERANCE_ALL[precision], "of their norm")
    off = max(abs(loss[task] - losses[task]) / max(1e-12, abs(losses[task])) for task in losses)
    report.at_most(f"{name}: loss", off, TOLERANCE_ALL[precision], "of its value")
    report.equal(f"{name}: weights that moved", moved, 1.0, "of all")
