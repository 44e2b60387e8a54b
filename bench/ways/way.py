"""A way of taking a step, what it is given, and what all models' ways share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]
Step = Callable[[], float]
"""One step; returns the loss that it began with."""
LR = 1e-4


@dataclass(frozen=True)
class Way:
    """How a step is taken; `recomputes` says with whom it is compared."""

    kind: Literal["authors", "grouped", "ours"]
    recomputes: bool = False
    kernel: Literal["generic", "fused"] = "generic"  # of attention, in the authors' layout of BAGEL
    options: Mapping[str, Any] = field(default_factory=dict)  # reca_fast's settings
    cached: bool = False  # the frozen encoders' work is done beforehand

    def runs(self, precision: Precision, *, update: bool) -> bool:
        """Whether it exists in that arithmetic, and as forward and backward passes alone."""
        narrow = self.options.get("memory.trained") == "bf16" or "memory.matmul" in self.options
        return (precision == "bf16" or not narrow) and (update or self.options.get("memory.order") != "layer")


@dataclass(frozen=True)
class Work:
    """What every way is given: the size of the model, a folder with its weights, the arithmetic."""

    size: str
    folder: Path
    precision: Precision
    device: torch.device
    update: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16


def ours(recomputes: bool = False, **levers: Any) -> Way:
    """reca_fast's own step with settings of `memory`."""
    levers = {"recompute": "blocks", **levers} if recomputes else levers
    return Way("ours", recomputes, options={f"memory.{name}": value for name, value in levers.items()})


def settings(work: Work, options: Mapping[str, Any]) -> Any:
    """The `RunConfig` of reca_fast's step on the checkpoint in `work.folder`. Imported in here, so that the authors'
    step is measured without reca_fast.
    """
    from reca_fast.config import ModelConfig, OptimConfig, RunConfig

    config = RunConfig(model=ModelConfig(path=str(work.folder), precision=work.precision), steps=1000)
    config.optim = OptimConfig(lr=LR, warmup_steps=0)
    for name, value in options.items():
        owner, _, leaf = name.rpartition(".")
        setattr(attrgetter(owner)(config), leaf, value)
    return config


def our_step(way: Way, work: Work, config: Any, model: Any, batch: Any) -> Step:
    """reca_fast's own `train_step` on one batch.

    Args:
        model: on the meta device.
        batch: on the device of `work`.
    """
    from reca_fast.data.loader import Pack
    from reca_fast.objectives import weighted_loss
    from reca_fast.train.assemble import assemble
    from reca_fast.train.distributed import Processes
    from reca_fast.train.step import train_step

    processes = Processes()
    processes.join(work.device.type)
    run = assemble(config, processes, model)
    if way.cached:
        batch = run.model.encode(batch)
        run.model.drop_encoders()
    pack = Pack(lane=0, number=0, batch=batch, keys=(), num_tokens=batch.num_tokens)

    def step() -> float:
        if work.update:
            stats = train_step(run, [pack])
            totals = dict(zip(stats.terms, stats.sums, strict=True))
        else:
            totals = run.passes.gradients([batch], lambda sums: weighted_loss(sums, batch.counts, run.config.loss))
            run.model.module.zero_grad(set_to_none=True)
        return float(weighted_loss(totals, batch.counts, run.config.loss))

    return step


def clip_and_step(optimizer: torch.optim.Optimizer, parameters: Any) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
