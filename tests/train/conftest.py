"""A run that is cheap enough to be begun anew with every setting changed."""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from reca_fast.config import DataConfig, ModelConfig, OptimConfig, ResizeConfig, RunConfig, SamplingConfig
from reca_fast.memory import apply_levers
from tests.train.short_run import Course, course, running


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    from reca_fast.models.bagel.tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    write_tiny_checkpoint(folder, hidden_size=32, intermediate_size=32, layers=1, vit_hidden_size=48, text_vocab=300)
    return folder


@pytest.fixture(scope="session")
def configured(base, pictures) -> Callable[..., RunConfig]:
    """configured(out, joint): three short steps.

    After the first one, whose learning rate is 0, the weights are the base's; moments are forgotten at once (betas of
    0). So a fresh run and one that is resumed after it differ in nothing but the settings.
    """

    def make(out: Path, joint: bool) -> RunConfig:
        config = RunConfig(
            out=str(out),
            steps=3,
            device="cpu",
            model=ModelConfig(path=str(base), precision="fp32", attention="eager", freeze_und=not joint),
            data=DataConfig(
                source=str(pictures),
                condition_resize=ResizeConfig(28, 28, 14),
                target_resize=ResizeConfig(16, 16, 8),
                tokens_per_pack=100,
            ),
            optim=OptimConfig(lr=1e-3, betas=(0.0, 0.0), eps=1e-2, warmup_steps=1, schedule="cosine"),
            sampling=SamplingConfig(steps=3, guidance=1.5),
            save_every=1,
            keep=10,
            sample_every=2,
            sample_count=1,
        )
        if joint:
            for task in ("t2i", "i2t"):
                setattr(config.data.tasks, task, 1.0)
                setattr(config.loss, task, 1.0)
        return config

    return make


@pytest.fixture(scope="session")
def begun(configured, tmp_path_factory) -> Callable[[bool], tuple[Path, Course]]:
    """begun(joint): (run folder left after the first step, course of the whole run)."""

    @functools.cache
    def make(joint: bool) -> tuple[Path, Course]:
        out = tmp_path_factory.mktemp("begun") / "run"
        running.train(configured(out, joint))
        whole = course(out)
        for step in (2, 3):
            shutil.rmtree(out / "checkpoints" / f"step-000000{step}")
        return out, whole

    return make


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """No pictures of curves; a compiler that needs no C++; torch as it was before."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reca_fast.train.telemetry.draw_curve", lambda *args: None)
        eagerly = functools.partial(apply_levers, compiler="eager")
        patch.setattr("reca_fast.train.assemble.apply_levers", eagerly)
        torch.set_num_threads(1)
        yield
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(threads)
