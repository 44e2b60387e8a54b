"""The regression with trainings that are made up: bands, verdicts and its page; and that the mutants are mistakes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reca_fast.cli.cache import CacheOptions
from reca_fast.cli.options import parse
from reca_fast.config.rules import check_run
from reca_fast.proof.regression import (
    PLAIN,
    SURE,
    WAYS,
    Plan,
    bands,
    collect,
    deviations,
    outside,
    settings_of,
    trial_of,
    trials_of,
)
from reca_fast.proof.regression_page import text_of, write_page
from reca_fast.proof.trial import write_json
from tests.proof.mutants import MUTANTS, openuni, sana
from tests.proof.test_study import resolve


def result(loss: float, reconstruction: float, overall: float, seed: int = 0, gradient: float | None = 0.8) -> dict:
    scores = {"reconstruction": reconstruction, "overall": overall}
    return {
        "seed": seed,
        "environment": {"torch": "2"},
        "seconds": 1.0,
        "loss": loss,
        "gradient": gradient,
        "scores": {name: {"value": v, "low": v, "high": v, "count": 200} for name, v in scores.items()},
    }


REFERENCE = [result(0.0400 + 0.0001 * n, 0.40 + 0.02 * n, 0.50 - 0.01 * n) for n in [*range(-2, 3)] * 2]


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    base = Path("base")
    base.mkdir()
    (base / "weights").write_text("numbers")
    return Plan(Path("runs"), base, seeds=10, steps=40, count=20, recipe="tiny-openuni")


@pytest.mark.parametrize("count", [2, 5, 10, 30])
def test_a_band_holds_a_further_value_as_students_distribution_says(count) -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy, which `.[dev]` brings")
    wanted = stats.t.ppf(0.5 + SURE / 2, count - 1) * (1 + 1 / count) ** 0.5
    assert deviations(count) == pytest.approx(wanted, rel=0.02 if count == 2 else 1e-3)


def test_a_band_follows_from_the_seeds_or_is_the_floor() -> None:
    """Of ten seeds 4.29 deviations; the loss's is 0.00015, that of reconstruction 0.0298."""
    found, wide = bands(REFERENCE), 4.29
    assert (found["loss"].low, found["loss"].high) == pytest.approx((0.0388, 0.0412))
    assert (found["gradient"].low, found["gradient"].high) == pytest.approx((0.72, 0.88))
    assert found["reconstruction"].high - 0.40 == pytest.approx(wide * 0.0298, rel=0.01)
    assert found["overall"].low == pytest.approx(0.50 - wide * 0.0149, rel=0.01)


@pytest.mark.parametrize(
    ("run", "out"),
    [
        (result(0.0405, 0.42, 0.51), []),
        (result(0.0440, 0.42, 0.51), ["loss"]),
        (result(0.0360, 0.42, 0.51), ["loss"]),  # lower than it can be is wrong as well
        (result(0.0405, 0.00, 0.36), ["reconstruction", "overall"]),
        (result(float("nan"), 0.42, 0.51), ["loss"]),
        (result(0.0405, 0.42, 0.51, gradient=1.6), ["gradient"]),  # all else is as it should be
        (result(0.0405, 0.42, 0.51, gradient=None), ["gradient"]),
    ],
)
def test_what_is_outside_is_named(run, out) -> None:
    assert outside(run, bands(REFERENCE)) == out


def test_every_way_differs_from_the_reference_in_what_it_says_and_the_recipe_takes_it(plan) -> None:
    trials = {(trial.name, trial.seed): trial for trial in trials_of(replace(plan, recipe="toy"), resolve)}
    for trial in trials.values():
        check_run(trial.stages[0][1], trial.processes)
    reference = trials["reference", 0]
    assert [seed for name, seed in trials if name == "reference"] == [*range(10)]
    assert " ".join(PLAIN) in " ".join(reference.args)
    config = reference.stages[0][1]
    assert (config.model.kernels, config.model.attention, config.model.precision) == ("reference", "sdpa", "fp32")
    for way in WAYS:
        assert way.lacks() == ("an NVIDIA GPU" if way.needs == "cuda" else "")
        if not way.lacks():
            trial = trials[way.name, 0]
            assert trial.asked() != reference.asked() and trial.processes == way.processes
    cached = [trial for trial in trials.values() if trial.cache]
    assert {trial.name for trial in trials.values()} - {trial.name for trial in cached} == {"reference"}
    for args in {trial.cache.args for trial in cached if trial.cache}:
        assert args[:3] == ("-m", "reca_fast", "cache") and parse(CacheOptions, "cache", args[3:]).out
    folders = {trial.name: trial.cache.folder for trial in cached}
    assert folders["cache"] == folders["int8"] != folders["bf16"] == folders["stochastic-rounding"]
    assert trial_of(plan, resolve, "mutant", program=("-m", "mutants")).cache is None


def test_the_page_tells_bands_paths_and_mutants(plan, reca_fast, tmp_path) -> None:
    trials = trials_of(plan, resolve)
    for trial in trials:
        if trial.name == "compile":
            continue  # as if it had failed
        run = REFERENCE[trial.seed] if trial.name == "reference" else result(0.0401, 0.41, 0.50)
        run = result(0.05, 0.41, 0.50) if trial.name == "nf4" else run
        trial.folder.mkdir(parents=True)
        write_json(trial.folder / "trial.json", trial.asked())
        write_json(trial.folder / "scores.json", run)
    results = json.loads(json.dumps(collect(trials, settings_of(plan))))
    results["mutants"] = {
        "caught": {"what": "a mistake", **result(0.0401, 0.0, 0.36)},
        "missed": {"what": "a small mistake", **result(0.0401, 0.41, 0.50)},
    }
    assert write_page(results, tmp_path) == ["nf4", "compile", "missed"]
    text = (tmp_path / "regression.md").read_text()
    assert "| **band** | 0.0388 to 0.0412 |" in text
    assert "| nf4 | frozen layers in 4 bits | **0.0500** | 0.8000 | 0.4100 | 0.5000 | **outside**: loss |" in text
    assert "| compile | blocks compiled | | | | | **failed**: its log says why |" in text
    assert "| kernels | Triton kernels and the fastest attention | | | | | not run: needs an NVIDIA GPU |" in text
    assert "| caught | a mistake | 0.0401 | 0.8000 | **0.0000** | **0.3600** | reconstruction, overall |" in text
    assert "| missed | a small mistake | 0.0401 | 0.8000 | 0.4100 | 0.5000 | **nothing** |" in text
    (tmp_path / "regression.json").write_text(json.dumps(results))
    said = reca_fast("study", "--regression", "--render", "--out", tmp_path)
    assert said.code == 1 and "Not where they have to be: nf4, compile, missed." in said.out
    assert (tmp_path / "regression.md").read_text() == text == text_of(results)
    assert collect(trials, settings_of(plan), results)["mutants"] == results["mutants"]  # they need not run again


@pytest.fixture
def mutated(monkeypatch):
    """mutated(name): the product with the mistake in it, until the test ends."""

    def make(name: str) -> None:
        for module, attribute in ((sana, "varlen_attention"), (sana, "swiglu"), (openuni, "flow_loss_by_task")):
            monkeypatch.setattr(module, attribute, getattr(module, attribute))  # put back afterwards
        MUTANTS[name].make()

    return make


def attended(q, k, v) -> torch.Tensor:
    from reca_fast.kernels import Varlen

    return sana.varlen_attention(q, k, v, Varlen.from_lengths([3, 2], [2, 2], causal=False), backend="eager")


def test_mutants_of_attention_are_wrong_in_one_thing(mutated) -> None:
    """The flip changes the gradient of the values and no number; the mask changes the numbers."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(rows, 2, 8, requires_grad=True) for rows in (5, 4, 4))
    right = attended(q, k, v)
    gradients = torch.autograd.grad(right.sum(), (q, k, v))
    mutated("sign-flip")
    flipped = attended(q, k, v)
    wrong = torch.autograd.grad(flipped.sum(), (q, k, v))
    assert torch.equal(flipped, right) and torch.equal(wrong[2], -gradients[2])
    assert torch.equal(wrong[0], gradients[0]) and torch.equal(wrong[1], gradients[1])
    mutated("wrong-mask")
    assert not torch.allclose(attended(q, k, v), right, atol=1e-2)


def test_mutants_of_rows_and_scales_are_wrong_in_one_thing(mutated) -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(2, 1, 16, 8)
    right = sana.swiglu(gate, up)
    mutated("dropped-row")
    lost = sana.swiglu(gate, up)
    assert torch.equal(lost[:, :7], right[:, :7]) and torch.equal(lost[:, 8:15], right[:, 8:15])
    assert not lost[:, [7, 15]].any()
    times, of = torch.tensor([0.1, 0.9]), torch.tensor([0, 0, 1])
    velocity, latents, noise = torch.randn(3, 3, 4)
    velocity.requires_grad_()

    def gradient() -> torch.Tensor:
        sums = openuni.flow_loss_by_task(velocity, latents, times, of, ["reca", "reca"], noise=noise)
        return torch.autograd.grad(sums["reca"], velocity)[0]

    before = gradient()
    mutated("gradient-scale")
    assert torch.equal(gradient(), 2 * before)
