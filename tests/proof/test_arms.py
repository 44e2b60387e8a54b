"""The arms' recipes: each changes what it says, and takes as many samples in a step as every other."""

from dataclasses import asdict, replace

import pytest

from reca_fast.cli.options import parse_stages
from reca_fast.config import RunConfig
from reca_fast.proof.arms import ARMS
from reca_fast.proof.study import EQUAL, SAMPLES

CHANGES = {
    "none": set(),
    "reca": set(),
    "sft-sparse": {"data.caption_name", "data.tasks", "loss"},
    "sft-dense": {"data.caption_name", "data.tasks", "loss"},
    "sft-mixed": {"data.tasks", "loss"},
    "sft-then-reca": {"data.caption_name", "data.tasks", "loss"},
    "reca-then-sft": {"data.caption_name", "data.tasks", "loss"},
    "condition-half": {"data.condition_resize"},
    "condition-quarter": {"data.condition_resize"},
    "blur-1": {"data.blur_sigma"},
    "blur-3": {"data.blur_sigma"},
    "templates-1": {"data.own_templates"},
    "templates-all": {"data.own_templates"},
    "data-64": {"data.limit"},
    "data-512": {"data.limit"},
}
"""Arm -> the settings in which some stage of it differs from the recipe toy."""


def settings_of(recipe: str) -> list[RunConfig]:
    return [config for _, config in parse_stages(RunConfig, "train", ["--config", recipe, *EQUAL])]


@pytest.fixture(scope="module")
def toy() -> RunConfig:
    return settings_of("toy")[0]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_an_arm_differs_from_the_recipe_in_what_it_says(arm, toy) -> None:
    found = set()
    for config in settings_of(arm.recipe):
        for name, value in asdict(config).items():
            if name == "data":
                found |= {f"data.{part}" for part, its in value.items() if its != asdict(toy.data)[part]}
            elif value != getattr(toy, name) and value != asdict(toy)[name]:
                found.add(name)
        assert config.data.lookahead == SAMPLES and replace(config.optim) == toy.optim
    assert found == CHANGES[arm.name]


def test_stages_stand_in_the_order_of_their_names() -> None:
    for order in (["sft", "reca"], ["reca", "sft"]):
        stages = settings_of(f"proof/{'-then-'.join(order)}")
        assert [config.loss.t2i > 0 for config in stages] == [name == "sft" for name in order]
