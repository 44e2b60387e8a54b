"""The tiny BAGEL of the smoke test: a checkpoint in a temporary folder, a pack of random pictures, one real step."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.config import LossWeights, MemoryConfig, ModelConfig, OptimConfig, RunConfig
from reca_fast.data.loader import Pack
from reca_fast.kernels import use_kernels
from reca_fast.memory import apply_levers, fill_model, host_empty
from reca_fast.models.bagel.model import BagelModel
from reca_fast.models.bagel.tiny import write_tiny_checkpoint
from reca_fast.optim import SkippedSteps, open_update
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, Sample, Text
from reca_fast.train.distributed import Processes
from reca_fast.train.passes import open_passes
from reca_fast.train.state import Run, trained
from reca_fast.train.stats import StepStats
from reca_fast.train.step import train_step

TARGETS, VIEWS = ((64, 64), (48, 64), (64, 40)), ((112, 112), (84, 112), (112, 70))


@contextmanager
def tiny_checkpoint() -> Iterator[Path]:
    """Two heads per key head, head width 32: the smallest that has everything."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_checkpoint(folder, layers=2)
        yield Path(folder)


def pictures(joint: bool) -> list[Sample]:
    """Three pictures of different shapes, one of them without its prompt; with `joint` two captions besides."""
    draw = torch.Generator().manual_seed(0)

    def picture(size: tuple[int, int]) -> Tensor:
        return torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=draw)

    samples = [
        Sample(f"picture {n}", (RECA,), picture(view), picture(target), None if n == 1 else Text((5, 6, 7, 8 + n)))
        for n, (view, target) in enumerate(zip(VIEWS, TARGETS, strict=True))
    ]
    if joint:
        samples += [
            Sample(f"caption {n}", (I2T,), picture(VIEWS[n]), None, Text(tuple(range(9, 15 + n)), said=((0, 6 + n),)))
            for n in range(2)
        ]
    return samples


@dataclass
class Step:
    """A model ready to be trained, and what its next step is given."""

    run: Run
    pack: Pack[Any]

    def __call__(self) -> StepStats:
        return train_step(self.run, [self.pack])


def prepare(folder: Path, device: torch.device, compiler: str = "inductor", **options: Any) -> Step:
    """The step under some of the model's options. `compiler`: of torch.compile, where `compile` asks for it."""
    joint = not options.get("freeze_und", True)
    loss = LossWeights(i2t=1.0) if joint else LossWeights()
    levers = {name: options.pop(name) for name in ("recompute", "compile", "matmul") if name in options}
    config = RunConfig(
        model=ModelConfig(path=str(folder), **options),
        memory=MemoryConfig(**levers),
        loss=loss,
        optim=OptimConfig(lr=1e-3, warmup_steps=0),
    )
    processes = Processes()
    processes.join(device.type)
    model = BagelModel.open(config.model)
    apply_levers(model.module, model.blocks(), config.memory, device=processes.device, compiler=compiler)
    fill_model(model, processes.device)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.module.llm2vae.parameters():  # it starts at zero, and nothing before it would learn
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    batch = model.inputs(config.data).collate(samples := pictures(joint), draw_of_pack(config.seed, 0, 0))
    keys = tuple(sample.key for sample in samples)
    pack = Pack(lane=0, number=0, batch=batch, keys=keys, num_tokens=batch.num_tokens)
    parts = trained(model.module), model.blocks(), model.decays
    update = open_update(*parts, config.optim, config.steps, device=processes.device, host_empty=host_empty)
    passes = open_passes(config, model, update, processes)
    return Step(Run(config, processes, model, update, passes, average=None, skipped=SkippedSteps(limit=0)), pack)


def gradients_of(step: Step) -> tuple[dict[str, Tensor], dict[str, float], float]:
    """Run a step: every trained weight's gradient before clipping (fp32 on the CPU), losses, share of weights moved."""
    parameters = trained(step.run.model.module)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    found: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda parameter: found.__setitem__(name, parameter.grad.detach().clone())

    hooks = [p.register_post_accumulate_grad_hook(keep(name)) for name, p in parameters.items()]
    try:
        stats = step()
    finally:
        for hook in hooks:
            hook.remove()
        use_kernels("auto")
    losses = {term: total / stats.counts[term] for term, total in zip(stats.terms, stats.sums.tolist(), strict=True)}
    moved = sum(not torch.equal(p, before[name]) for name, p in parameters.items()) / len(parameters)
    return {name: grad.float().cpu() for name, grad in found.items()}, losses, moved
