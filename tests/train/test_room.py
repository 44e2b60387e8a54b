"""A run that cannot fit is refused before anything is loaded; one that runs out of memory is told what comes next."""

from types import SimpleNamespace

import pytest
import torch

from reca_fast.config import MemoryConfig, ModelConfig, OptimConfig, RunConfig
from reca_fast.config.recipes import recipe_for_card
from reca_fast.errors import UserError
from reca_fast.models import published_model
from reca_fast.train.room import check_room, least_bytes, out_of_memory_is_a_user_error

GB = 10**9
LEAN = MemoryConfig(trained="bf16", order="layer", gradients="host", recompute="blocks")


@pytest.fixture(scope="module")
def model():
    return published_model("BAGEL-7B-MoT", ModelConfig())


def test_what_a_run_keeps_is_counted_from_its_settings(model) -> None:
    """6.54 G trained numbers: fp32 weights, gradients and two moments; or bf16 weights alone. 6.53 G frozen ones."""
    plain = least_bytes(RunConfig(), model)
    assert {name: round(size / GB, 1) for name, size in plain.items() if name != "weights"} == {
        "gradients": 26.2,
        "optimizer states": 52.3,
    }
    lean = least_bytes(RunConfig(memory=LEAN, optim=OptimConfig(kind="adafactor")), model)
    assert lean.keys() == {"weights"}
    assert plain["weights"] - lean["weights"] == pytest.approx(13.1 * GB, rel=0.01)
    away = MemoryConfig("bf16", order="layer", gradients="host", recompute="blocks", frozen_on="host", swap=1.0)
    assert least_bytes(RunConfig(memory=away), model)["weights"] < 2.5 * GB
    assert sum(least_bytes(RunConfig(), model, 8).values()) == pytest.approx(sum(plain.values()) / 8, rel=1e-6)


def test_an_impossible_run_is_refused_with_the_recipe_for_such_a_card(model) -> None:
    with pytest.raises(UserError, match=r"cannot fit: weights .* before any activation, and it has 22\.\d.*bagel-24gb"):
        check_room(RunConfig(), model, 24 * GB)
    check_room(RunConfig(memory=LEAN, optim=OptimConfig(kind="adafactor")), model, 48 * GB)


@pytest.mark.parametrize(("size", "name"), [(11, None), (12, "bagel-12gb"), (24, "bagel-24gb"), (40, "bagel-24gb")])
def test_a_card_has_the_recipe_of_its_size_or_the_next_smaller(size, name) -> None:
    assert recipe_for_card("BAGEL-7B-MoT", size) == name
    assert recipe_for_card("another", size) is None


def test_running_out_of_memory_names_what_was_held_and_the_next_lever(model, monkeypatch) -> None:
    run = SimpleNamespace(config=RunConfig(), model=model, processes=SimpleNamespace(world=1), step=4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=80 * GB))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 79 * GB)
    with (
        pytest.raises(UserError, match=r"ran out in step 5: weights .*bagel-80gb.*--memory\.recompute selective"),
        out_of_memory_is_a_user_error(run),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
