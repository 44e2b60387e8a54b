"""What must come out the same twice: the gradients of a step, with `deterministic` and without; pictures of one seed,
whatever is drawn beside them.
"""

from collections.abc import Callable

import torch

from reca_fast.config import ModelConfig, Precision, SamplingConfig
from reca_fast.memory import fill_model
from reca_fast.models.bagel.model import BagelModel
from reca_fast.train.determinism import make_deterministic

from .bagel import training
from .layers import PICTURES, run_phases
from .report import Report
from .tiny import TARGETS, pictures, tiny_checkpoint


def hand_in(report: Report) -> None:
    report.attempt("deterministic", repeat, report, True)  # first: it has to be chosen before the first product
    report.attempt("default", repeat, report, False)
    for precision in ("fp32", "bf16"):
        report.attempt(f"pictures, {precision}", draw_alone, report, precision)


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


def draw_alone(report: Report, precision: Precision) -> None:
    """Pictures of three sizes drawn in one call and each in its own: not a pixel may differ.

    The weights make visible differences out of a last bit, as trained ones do.
    """
    sampling = SamplingConfig(steps=12, guidance=4.0)
    with tiny_checkpoint() as folder, torch.no_grad():
        model = BagelModel.open(ModelConfig(path=str(folder), precision=precision))
        fill_model(model, report.device)
        draw = torch.Generator().manual_seed(2)
        for name, parameter in model.module.named_parameters():
            if name.startswith(("llm2vae", "vae2llm")) or ("_proj" in name and ".gen." in name):
                noise = torch.randn(parameter.shape, generator=draw) / max(parameter.shape[-1], 16) ** 0.5
                parameter.copy_(10 * noise)
        samples, sizes, seeds = pictures(joint=False), [(width, height) for height, width in TARGETS], [3, 1, 2]
        together = model.sample(samples, sizes, sampling, seeds)
        alone = [
            model.sample([sample], [size], sampling, [seed])[0]
            for sample, size, seed in zip(samples, sizes, seeds, strict=True)
        ]
    differing = sum(int((one != other).sum()) for one, other in zip(together, alone, strict=True))
    title = f"pictures alone and beside others, {precision}: grey levels that differ"
    report.figure(title, differing, f"of {sum(x.numel() for x in alone)}", expected=0, ok=differing == 0)
