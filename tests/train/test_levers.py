"""Runs with memory levers pulled: the losses of a run without them, and resumed bit for bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reca_fast.config import RunConfig
from reca_fast.errors import UserError
from tests.train.short_run import course, running

pytestmark = pytest.mark.usefixtures("quick")

MIXTURES: dict[str, dict[str, Any]] = {
    "layer": {"memory.order": "layer"},
    "layer, gradients on the host": {"memory.order": "layer", "memory.gradients": "host"},
    "layer, gradients twice": {"memory.order": "layer", "memory.gradients": "twice"},
    "layer, selective": {"memory.order": "layer", "memory.recompute": "selective", "memory.keep_on": "host"},
    "everything away": {
        "memory.order": "layer",
        "memory.gradients": "host",
        "memory.recompute": "blocks",
        "memory.frozen_on": "host",
        "memory.swap": 1.0,
    },
}


@pytest.fixture(scope="module")
def deep(configured, tiny_folder) -> Callable[..., RunConfig]:
    """The short run, with a base of more than one block."""

    def make(out: Path, joint: bool) -> RunConfig:
        config: RunConfig = configured(out, joint)
        config.model.path = str(tiny_folder)
        return config

    return make


def pulled(config: RunConfig, levers: dict[str, Any]) -> RunConfig:
    config.data.packs_per_step, config.data.tokens_per_pack = 3, 60
    for name, value in levers.items():
        group, leaf = name.split(".")
        setattr(getattr(config, group), leaf, value)
    return config


@pytest.fixture(scope="module")
def plain(deep, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    running.train(pulled(deep(out, True), {}))
    return course(out)


@pytest.mark.parametrize("levers", MIXTURES.values(), ids=MIXTURES.keys())
def test_losses_stay_and_a_resumed_run_repeats_them(levers, plain, deep, tmp_path) -> None:
    """Joint training, three packs a step, a sample grid in between."""
    out = tmp_path / "run"
    running.train(pulled(deep(out, True), levers))
    whole = course(out)
    assert whole.keys() == plain.keys()
    for step, numbers in plain.items():
        assert whole[step] == pytest.approx(numbers, rel=1e-6)
    shutil.rmtree(out / "checkpoints" / "step-0000003")
    shutil.rmtree(out / "checkpoints" / "step-0000002")
    running.train(pulled(deep(out, True), levers))
    assert course(out) == whole


@pytest.mark.parametrize(
    ("levers", "sentence"),
    [
        ({"memory.swap": 0.5}, r"memory\.swap=0\.5 goes block by block: set --memory\.order layer"),
        ({"memory.gradients": "host"}, r"memory\.gradients=host goes block by block"),
        (
            {"memory.order": "layer", "memory.frozen_on": "host"},
            r"frozen_on=host takes .* --memory\.recompute blocks",
        ),
        (
            {"memory.order": "layer", "memory.recompute": "blocks", "memory.swap": 0.5, "optim.ema_decay": 0.9},
            r"optim\.ema_decay > 0 averages weights on the device, where memory\.swap leaves none",
        ),
    ],
)
def test_levers_that_exclude_each_other_are_refused(levers, sentence, deep, tmp_path) -> None:
    with pytest.raises(UserError, match=sentence):
        running.train(pulled(deep(tmp_path / "run", False), levers))
    assert not (tmp_path / "run").exists()
