"""The other models' arms: their recipes, and the page that says what came of them or what it lacks."""

from dataclasses import asdict

import pytest

from reca_fast.cli.options import parse_stages
from reca_fast.config import RunConfig
from reca_fast.proof.other_arms import ARMS, BASES, CLAIMS
from reca_fast.proof.others_page import others_text
from reca_fast.proof.study import EQUAL
from tests.proof.made_up import measured

TASKS = {
    "none": ("reca",),
    "reca": ("reca",),
    "latents": ("reca",),
    "copy": ("reca",),
    "sft": ("t2i",),
    "i2t": ("reca", "i2t"),
}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_an_arm_trains_what_its_name_says(arm) -> None:
    config = parse_stages(RunConfig, "train", ["--config", arm.recipe, *EQUAL])[0][1]
    base = parse_stages(RunConfig, "train", ["--config", f"proof/base-{arm.base}"])[0][1]
    kind = arm.name.removeprefix(f"{arm.base}-")
    assert tuple(task for task, weight in asdict(config.loss).items() if weight) == TASKS[kind]
    assert config.data.source == "toy:posttraining" and not config.data.instructions
    assert base.data.source == "toy:base" and base.data.instructions == "toy:understanding"
    assert (config.model.condition == "generation") == (kind == "latents")
    assert config.sampling == base.sampling and config.data.target_resize == base.data.target_resize


def test_claims_name_arms_of_one_model() -> None:
    base_of = {arm.name: arm.base for arm in ARMS}
    assert len(base_of) == len(ARMS) and set(base_of.values()) == set(BASES)
    assert all(base_of[claim.a] == base_of[claim.b] for claim in CLAIMS)


def made_up(single: float, understanding: float, loss: float | None) -> list[dict]:
    scores = measured({"single": single, "colour": single / 2, "dense": single / 2}, 20).report()["scores"]
    said = {"value": understanding, "low": understanding - 0.01, "high": understanding + 0.01, "count": 256}
    trained = {"steps": 0} if loss is None else {"steps": 20, "samples_per_step": 64.0, "loss": loss}
    return [
        {"seed": seed, "environment": {"torch": "2"}, "scores": {**scores, "understanding": said}, **trained}
        for seed in range(3)
    ]


def test_the_page_says_what_holds_and_what_a_claim_lacks() -> None:
    results = {
        "harmon-none": made_up(0.6, 0.2, None),
        "harmon-reca": made_up(0.9, 0.8, 0.1),
        "harmon-i2t": made_up(0.9, 0.3, 0.1),
    }
    arms = {arm.name: {**asdict(arm), "seeds": results[arm.name]} for arm in ARMS if arm.name in results}
    study = {"arms": arms, "steps": 20, "seeds": [0, 1, 2], "prompts": 20, "bases": {"harmon": "ab12"}}
    page = others_text({"harmon": study})
    assert "reca-fast study --model harmon --seeds 3 --steps 20 --prompts 20 --out docs/proof" in page
    rows = {tuple(row.split(" | ")[0:5:3]): row for row in page.split("\n") if row.startswith("| ")}
    told = next(row for row in rows.values() if "RECA alone harms understanding" in row and "harmon" in row)
    assert "harmon-none 0.200 ± 0.000 | harmon-reca 0.800" in told and told.endswith("**holds** |")
    for model in BASES:
        assert f"not run: lacks a run of `reca-fast study --model {model}`" in page
    assert "20 steps of 64 samples, 3 seeds, 20 prompts" in page
    assert "The base draws single things (0.60 of its single ones are right)" in page

    arms["harmon-none"]["seeds"] = made_up(0.1, 0.2, None)
    assert "has not learned to draw** (0.10" in others_text({"harmon": study})


def test_a_study_of_a_model_knows_its_arms_alone(reca_fast, tmp_path) -> None:
    said = reca_fast("study", "--model", "bagel", "--arms", "[reca]").sentence
    assert "There is no arm 'reca', only bagel-none, bagel-sft, bagel-reca, bagel-latents" in said
    said = reca_fast("study", "--model", "bagel", "--base", tmp_path / "none").sentence
    assert "does not exist" in said and "--model" in said
