"""The recipes fit the cards that they are made for, with room: budgets, and the plans that prove them."""

import json
from typing import Any

import pytest

from bench.plans import CARDS, RESULT, planned, settings
from reca_fast.config.recipes import shipped
from reca_fast.models.bagel import BagelModel

GOALS: dict[str, dict[str, float]] = {
    "bagel-10gb-qlora": {"peak_gpu_gib": 9.5},
    "bagel-12gb": {"peak_gpu_gib": 11, "peak_host_gib": 48},
    "bagel-16gb": {"peak_gpu_gib": 15, "peak_host_gib": 48},
    "bagel-24gb": {"peak_gpu_gib": 22.5},
    "bagel-48gb": {"peak_gpu_gib": 45},
    "bagel-80gb": {"peak_gpu_gib": 76, "tflop_per_image": 215},
    "bagel-8x80gb": {"peak_gpu_gib": 60, "tflop_per_image": 200},
}
"""Recipe -> what its plan may not exceed."""
IMAGES = {"bagel-12gb": 2, "bagel-16gb": 4, "bagel-24gb": 4, "bagel-48gb": 4, "bagel-80gb": 8}
"""Recipe -> images that a step takes at least."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    recipes: dict[str, Any] = json.loads(RESULT.read_text())["recipes"]
    return recipes


def test_every_recipe_for_the_published_bagel_has_a_plan(recorded) -> None:
    named = {name for name, path in shipped().items() if f"name: {BagelModel.PUBLISHED[0]}" in path.read_text()}
    assert recorded.keys() == CARDS.keys() == named


@pytest.mark.parametrize("recipe", GOALS)
def test_the_recorded_plan_keeps_the_budget_and_fits_the_card(recipe, recorded) -> None:
    plan = recorded[recipe]
    assert plan["fits"] and all(plan[name] <= most for name, most in GOALS[recipe].items()), plan
    assert plan["images_per_step"] >= IMAGES.get(recipe, 1)


@pytest.mark.parametrize("recipe", CARDS)
def test_the_recorded_plan_is_that_of_the_recipe_as_it_is(recipe, recorded) -> None:
    """Whoever changes a recipe plans it again: `python bench/plans.py --only RECIPE`."""
    config = json.loads(json.dumps(recorded[recipe]["settings"]))
    now = settings(recipe)
    for group, values in config.items():
        for name, value in values.items():
            kept = getattr(getattr(now, group), name)
            if not hasattr(kept, "__dataclass_fields__"):
                assert value == (list(kept) if isinstance(kept, tuple) else kept), (group, name)


def test_only_the_smaller_cards_move_trained_weights(recorded) -> None:
    assert {name for name in recorded if settings(name).memory.swap} == {"bagel-12gb", "bagel-16gb"}
    assert {name for name in recorded if settings(name).lora.rank} == {"bagel-10gb-qlora"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("recipe", CARDS)
def test_a_new_plan_says_what_was_recorded(recipe, recorded) -> None:
    """Half a minute each."""
    plan = planned(recipe)
    for name in ("peak_gpu_gib", "peak_host_gib", "tflop_per_image"):
        assert plan[name] == pytest.approx(recorded[recipe][name], rel=0.01), name


@pytest.mark.exhaustive
@pytest.mark.parametrize("recipe", ["openuni-24gb", "harmon-24gb", "showo-24gb"])
def test_the_other_architectures_fit_a_small_card(recipe, reca_fast) -> None:
    """Each takes a minute of planning."""
    assert reca_fast("plan", "--config", recipe, "--gpu", "4090").code == 0
