"""bench/step.py: every way computes the same step, like is compared with like, and the command leaves its results."""

import json
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from bench import step
from bench.step_measure import Flops, measure
from bench.step_report import ratios, summarise
from bench.ways import Work, bagel
from bench.ways.bagel import WAYS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
NARROWED = ("ours, frozen int8", "ours, frozen nf4")
"""Ways whose frozen weights are not quite the others'."""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    folder = tmp_path_factory.mktemp("weights")
    bagel.write("tiny", folder)
    return Work("tiny", folder, "fp32", torch.device("cpu"), update=True)


@pytest.fixture(scope="module")
def figures(work) -> dict[str, dict]:
    """Of every way that needs no library beside the suite's."""
    return {name: measure(bagel, name, work, steps=1) for name, way in WAYS.items() if way.runs("fp32", update=True)}


def test_every_way_begins_with_the_same_loss(figures) -> None:
    for name, got in figures.items():
        assert got["loss"] == pytest.approx(figures["authors"]["loss"], rel=0.1 if name in NARROWED else 1e-5), name


def test_levers_show_in_the_figures(figures) -> None:
    """What is not computed, or not kept, is neither counted nor held."""
    flop = {name: got["flop"] for name, got in figures.items()}
    assert flop["ours"] < flop["grouped"] and flop["ours"] < flop["authors"]
    assert flop["ours, cached"] < flop["ours"] <= flop["ours, selective"] < flop["ours, recomputed"]
    # the fused kernel forms the scores again in its backward pass
    assert flop["authors"] < flop["authors fused"] < flop["authors, recomputed"]
    peak = {name: got["peak_bytes"] for name, got in figures.items()}
    assert peak["ours"] < peak["authors"] and peak["ours, recomputed"] < peak["ours"]
    assert figures["ours, half swapped"]["host_bytes"] > figures["ours"]["host_bytes"]
    for got in figures.values():
        assert 0 < got["weights_bytes"] < got["peak_bytes"] == sum(got["by_category"].values())
        assert got["share"][0] > 0 and got["seconds"][0] > 0


def test_flops_of_a_product_and_its_gradients() -> None:
    a, b = torch.ones(2, 3, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    with Flops() as flops:
        (a @ b).sum().backward()
    assert flops.total == 3 * 2 * 2 * 3 * 5


def round_of(**seconds: float) -> dict[str, dict]:
    rest = {"loss": 1.0, "flop": 1, "peak_bytes": 3, "weights_bytes": 1, "host_bytes": 0, "by_category": None}
    each = {name.replace("__", ", "): s for name, s in seconds.items()}
    return {name: {"seconds": [s, s], "wall_s": [s], "share": [0.5], **rest} for name, s in each.items()}


def test_like_is_compared_with_like_inside_a_round() -> None:
    rounds = [
        round_of(authors=4, ours=2, authors__recomputed=9, ours__recomputed=3),
        round_of(authors=12, ours=3, authors__recomputed=10, ours__recomputed=5),
    ]
    assert ratios(rounds, WAYS) == {
        "authors / ours": {"median": 3, "least": 2, "most": 4},
        "authors, recomputed / ours, recomputed": {"median": 2.5, "least": 2, "most": 3},
    }
    assert summarise(rounds)["ours"]["seconds"] == 2.5 and summarise(rounds)["ours"]["above_weights_bytes"] == 2


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path):
    """run(option, ...): exit code and output of the command in this process, at the tiny size."""

    def call(*options: str) -> tuple[object, str, str]:
        fixed = ["--size", "tiny", "--rounds", "1", "--steps", "1", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["step.py", *fixed, "--out", str(tmp_path / "step.json"), *options])
        try:
            code: object = step.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_a_run_leaves_a_table_figures_and_a_picture(run, tmp_path) -> None:
    code, said, _ = run("--ways", "ours", "--no-update")
    assert code == 0, said
    report = json.loads((tmp_path / "step.json").read_text())
    assert list(report["summary"]) == ["ours"] and report["environment"]["torch"] and not report["failed"]
    assert report["setting"]["update"] is False and report["summary"]["ours"]["flop"] > 0
    assert "forward and backward" in said and (tmp_path / "step.png").stat().st_size > 10_000


def test_a_way_that_fails_is_told_and_the_others_go_on(run, tmp_path, monkeypatch) -> None:
    ours = round_of(ours=1.0)["ours"]

    def measured(way, folder, args):
        if way == "authors":
            raise RuntimeError("authors failed:\nno room")
        return ours

    monkeypatch.setattr(step, "measure_in_subprocess", measured)
    code, said, _ = run("--ways", "ours", "authors")
    assert code == 1 and "no room" in said
    assert json.loads((tmp_path / "step.json").read_text())["failed"] == {"authors": "authors failed:\nno room"}


def test_a_way_that_does_not_exist_in_this_arithmetic_is_one_sentence(run) -> None:
    code, _, error = run("--ways", "ours, trained bf16")
    assert code == 2 and "ours, trained bf16: not with --precision fp32" in error


def test_a_way_of_another_model_is_one_sentence(run) -> None:
    code, _, error = run("--model", "harmon", "--ways", "grouped")
    assert code == 2 and "harmon has no way 'grouped'; it has 'authors'" in error
