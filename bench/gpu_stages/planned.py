"""The planner's peak beside what CUDA's allocator gave out: BAGEL's real width, few layers, lever by lever.

Training is from a cache, so that no encoder is there, and weights hold no particular numbers: memory does not ask.
"""

from importlib.util import find_spec
from typing import Any

import torch

from reca_fast.config import DataConfig, MemoryConfig, OptimConfig, ResizeConfig, RunConfig
from reca_fast.plan.simulate import Alone, make_packs, step_on_fakes
from reca_fast.train.assemble import assemble
from reca_fast.train.step import train_step

from .bagel import make_model, real_config
from .report import Report

LAYERS, PACKS = 2, 2
SHARE = 0.05
"""By which prediction and measurement may differ."""
LAYERWISE = {"order": "layer", "recompute": "blocks"}
LEVERS: dict[str, tuple[dict[str, Any], str]] = {  # of memory, and the kind of optimizer
    "plain": ({}, "adamw"),
    "recompute blocks": ({"recompute": "blocks"}, "adamw"),
    "recompute selective": ({"recompute": "selective"}, "adamw"),
    "bf16, adamw8bit": ({"trained": "bf16"}, "adamw8bit"),
    "layer by layer, gradients on the host": (LAYERWISE | {"gradients": "host"}, "adamw"),
    "nf4": ({"frozen": "nf4"}, "adamw"),
    "frozen on the host, swap": (LAYERWISE | {"frozen_on": "host", "swap": 1.0, "gradients": "host"}, "adamw"),
}

NEED_BITSANDBYTES = ("bf16, adamw8bit", "nf4")


def hand_in(report: Report) -> None:
    for name in LEVERS:
        if name in NEED_BITSANDBYTES and find_spec("bitsandbytes") is None:
            report.figure(name, None, ok=None, error="left out: bitsandbytes is not installed")
            continue
        report.attempt(name, compare, report, name, needs=5.0)


def configuration(name: str, device: torch.device) -> RunConfig:
    levers, kind = LEVERS[name]
    data = DataConfig(cache="none is read", packs_per_step=PACKS)
    if device.type == "cpu":
        small = ResizeConfig(56, 56, 14), ResizeConfig(64, 64, 16)
        data = DataConfig(
            condition_resize=small[0],
            target_resize=small[1],
            tokens_per_pack=250,
            cache=data.cache,
            packs_per_step=PACKS,
        )
    optim = OptimConfig(kind=kind, warmup_steps=0)  # type: ignore[arg-type]
    return RunConfig(device=device.type, data=data, memory=MemoryConfig(**levers), optim=optim)


def compare(report: Report, name: str) -> None:
    config = configuration(name, report.device)
    sizes = real_config(LAYERS, tiny=report.rehearsal)
    simulated = step_on_fakes(config, make_model(sizes), PACKS, on_gpu=not report.rehearsal)
    predicted = simulated.device.total
    model, process = make_model(sizes), Alone()
    process.device = report.device
    packs = make_packs(config, model, PACKS)
    run = assemble(config, process, model, empty=True)
    train_step(run, packs)
    if report.rehearsal:
        train_step(run, packs)
        report.figure(f"{name}: peak memory", None, "GB", expected=round(predicted / 1e9, 6))
        return
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    train_step(run, packs)
    torch.cuda.synchronize()
    used = torch.cuda.max_memory_allocated()
    fits = abs(used - predicted) <= SHARE * used
    report.figure(f"{name}: peak memory", used / 1e9, "GB", expected=round(predicted / 1e9, 2), ok=fits)
