"""The same step of two real-width layers twice, with `deterministic` and without: which gradients change in any bit."""

from collections.abc import Callable

import torch

from reca_fast.train.determinism import make_deterministic

from .bagel import training
from .layers import PICTURES, run_phases
from .report import Report


def hand_in(report: Report) -> None:
    report.attempt("deterministic", repeat, report, True)  # first: it has to be chosen before the first product
    report.attempt("default", repeat, report, False)


def repeat(report: Report, deterministic: bool) -> None:
    """Under `deterministic` none may change; without, it is good to know how many do. And what the backward costs."""
    name = f"2 layers, recomputed{', deterministic' * deterministic}"
    if deterministic:
        make_deterministic()
    try:
        with training(2, 1 if report.rehearsal else PICTURES, report.device, recompute=True) as work:
            phases: dict[str, Callable[[], object]] = {"forward": work.forward, "backward": work.backward}
            rounds, times = [], {}
            for _ in range(3):  # the first compiles
                work.model.module.zero_grad(set_to_none=True)
                times = run_phases(phases, report.device)
                rounds.append([p.grad for p in work.model.module.parameters() if p.grad is not None])
    finally:
        torch.use_deterministic_algorithms(False)
    differing = sum(not torch.equal(a, b) for a, b in zip(*rounds[1:], strict=True))
    expected = 0 if deterministic else None
    title = f"{name}: gradients that change from run to run"
    report.figure(title, differing, f"of {len(rounds[0])}", expected=expected, ok=differing == 0 or not deterministic)
    report.figure(f"{name}: backward", times["backward"], "ms")
