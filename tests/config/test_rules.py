"""Settings that cannot work, alone or together, are refused by name before anything is opened."""

import math

import pytest

from reca_fast.config import RunConfig, SamplingConfig
from reca_fast.config.rules import check_run, check_sampling
from reca_fast.errors import UserError


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss.i2t": 1.0, "data.tasks.i2t": 1.0}, "freeze_und"),
        ({"data.tasks.t2i": 1.0}, "data.tasks.t2i and loss.t2i must both"),
        ({"loss.reca": 0.0}, "data.tasks.reca and loss.reca must both"),
        ({"data.packs_per_step": 3}, "multiple of 2"),
        ({"parallel.replicate": 3}, "parallel.replicate=3 does not divide the 2 processes; set it to a divisor of 2"),
        ({"out": ""}, "set --out to a folder"),
        (
            {"data.target_resize.min_size": 2000},
            "target_resize.min_size=2000 is above data.target_resize.max_size=1024",
        ),
        ({"data.condition_resize.max_size": 14}, "data.condition_resize.min_size=224 is above"),
        ({"data.tasks.reca": 0.0, "loss.reca": 0.0}, "data.tasks.reca, data.tasks.t2i, data.tasks.i2t are all 0"),
        ({"sample_every": 1, "sampling.image_guidance": 2.0}, "set --sampling.guidance above 1 as well"),
        ({"steps": 0}, "steps=0"),
        ({"keep": 0}, "keep=0"),
        ({"log_every": 0}, "log_every=0"),
        ({"save_every": -1}, "save_every=-1"),
        ({"sample_every": -1}, "sample_every=-1"),
        ({"optim.lr": -1e-4}, "optim.lr=-0.0001: it must be at least 0"),
        ({"optim.lr": math.nan}, "optim.lr=nan"),
        ({"optim.eps": -1.0}, "optim.eps=-1.0"),
        ({"optim.weight_decay": -0.1}, "optim.weight_decay=-0.1"),
        ({"optim.betas": (0.9, 1.0)}, "optim.betas=.* below 1"),
        ({"optim.ema_decay": 1.0}, "optim.ema_decay=1.0: it must be at least 0 and below 1"),
        ({"optim.warmup_steps": -1}, "optim.warmup_steps=-1"),
        ({"optim.max_grad_norm": -1.0}, "optim.max_grad_norm=-1.0"),
        ({"optim.min_lr_ratio": 1.5}, "optim.min_lr_ratio=1.5"),
        ({"optim.max_skipped_steps": -1}, "optim.max_skipped_steps=-1"),
        (
            {"optim.kind": "paged_adamw8bit", "optim.states": "host"},
            "optim.states=host excludes optim.kind=paged_adamw8b",
        ),
        ({"optim.kind": "muon"}, "optim.kind=muon needs every matrix whole.*parallel.replicate 2"),
        (
            {"memory.trained": "bf16", "model.precision": "fp32"},
            "memory.trained=bf16 keeps fewer digits than model.pre",
        ),
        ({"memory.budget_gib": 20.0}, "memory.budget_gib=20 with memory.recompute=none"),
        ({"memory.recompute": "budget"}, "memory.budget_gib=0 with memory.recompute=budget"),
        ({"memory.mlp_rows": 4096, "memory.compile": True}, "memory.mlp_rows=4096 runs a layer's MLP in a loop"),
        ({"sample_count": 0}, "sample_count=0"),
        ({"sampling.steps": 0}, "sampling.steps=0"),
        ({"sampling.timestep_shift": 0.0}, "sampling.timestep_shift=0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(change, says) -> None:
    config = RunConfig()
    config.data.packs_per_step = 2
    check_run(config, processes=2)
    for name, value in change.items():
        *path, last = name.split(".")
        part = config
        for step in path:
            part = getattr(part, step)
        setattr(part, last, value)
    with pytest.raises(UserError, match=says):
        check_run(config, processes=2)


def test_sampling_settings_count_where_something_is_drawn() -> None:
    config = RunConfig(sampling=SamplingConfig(guidance=1.0, image_guidance=2.0), sample_every=0)
    check_run(config, processes=1)
    with pytest.raises(UserError, match=r"set --sampling\.guidance above 1 as well"):
        check_sampling(config.sampling)
    with pytest.raises(UserError, match="the second time must be the later one"):
        check_sampling(SamplingConfig(guidance=2.0, guidance_interval=(0.9, 0.4)))
