"""bench/vocabulary_step.py: both ways come to the same loss and gradients, and the command leaves its results."""

import json
import sys

import pytest
import torch

from bench import vocabulary_step
from bench.vocabulary_step import SIZES, WAYS, Sizes, make_inputs, measure, summarise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("t2i", [0, 1])
def test_both_ways_compute_the_same(t2i) -> None:
    sizes = Sizes(width=16, vocabulary=101, recon_length=20, joint_length=15, codes=12, answers=4, t2i=t2i)
    found = {}
    for way, step in WAYS.items():
        inputs = make_inputs(sizes, torch.device("cpu"))
        loss, *_ = step(inputs)
        loss.backward()
        found[way] = {"loss": loss.detach(), **inputs.gradients()}
    for name, theirs in found["authors"].items():
        torch.testing.assert_close(found["ours"][name], theirs)
    assert found["ours"]["recon"].abs().sum() > 0


def test_figures_of_a_way_are_compared_inside_a_round() -> None:
    figures = measure("ours", make_inputs(SIZES["tiny"], torch.device("cpu")), "fp32", 2)
    assert len(figures["seconds"]) == 2 and figures["peak_bytes"] >= 0

    def round_of(authors: float, ours: float) -> dict:
        times = {"authors": (authors, 8e9), "ours": (ours, 1e9)}
        return {way: {"loss": 1.0, "seconds": [took], "peak_bytes": peak} for way, (took, peak) in times.items()}

    summary = summarise([round_of(4.0, 1.0), round_of(40.0, 20.0), round_of(6.0, 2.0)])
    assert summary["times_faster"] == 3.0 and summary["share_of_memory"] == 0.125


@pytest.mark.slow
def test_the_command_writes_figures_and_environment(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "found.json"
    options = ["--size", "tiny", "--rounds", "1", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["vocabulary_step.py", *options])
    assert vocabulary_step.main() == 0
    report = json.loads(out.read_text())
    assert report["environment"]["torch"] == torch.__version__ and report["setting"]["vocabulary"] == 515
    losses = [report["ways"][way]["loss"] for way in WAYS]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert "times as fast" in capsys.readouterr().out
