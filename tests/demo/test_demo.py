"""`python -m reca_fast.demo` with a base that knows nothing: it measures, trains, reports, and says that none shows."""

import json
import os
import signal

import pytest

from reca_fast.demo import __main__ as demo
from reca_fast.models.tiny import make_tiny
from tests.pages.reader import Page

SIZES = "{max_size: 32, min_size: 32, stride: 8, fit: crop}"
RECIPE = f"""
base: tiny-openuni
data:
  source: toy:posttraining
  limit: 8
  condition_resize: {SIZES}
  target_resize: {SIZES}
optim: {{ema_decay: 0.5}}
sampling: {{steps: 1, guidance: 1.0, together: 64}}
"""


@pytest.mark.exhaustive  # two more processes that import torch
def test_the_demo_measures_trains_and_reports(tmp_path, monkeypatch, capsys) -> None:
    recipe, base, out = tmp_path / "recipe.yaml", make_tiny("tiny-openuni", tmp_path / "tiny-openuni"), tmp_path / "out"
    recipe.write_text(RECIPE)
    monkeypatch.setattr(demo, "RECIPE", str(recipe))
    code = demo.main(["--out", str(out), "--base", str(base), "--steps", "2", "--prompts", "2", "--seed", "3"])
    said = capsys.readouterr().out
    assert code == 1 and "RECA's effect does not show: fully specified prompts 0.00, wanted at least 0.08" in said
    report = json.loads((out / "report.json").read_text())
    assert report["before"]["dense"]["count"] == report["after"]["dense"]["count"] == 2
    assert report["seeds"] == {"seed": 3, "data.seed": 3, "drawing": 3} and report["loss"]["steps"] == 2
    assert report["before"]["seed"] == 3 and not report["effect"]["shown"]
    assert [gate["met"] for gate in report["effect"]["gates"]] == [False] * 4
    assert {path.name for path in out.iterdir()} == demo.WRITTEN  # or the next demo would refuse the folder
    page = Page((out / "report.html").read_text())
    assert page.problems == [] and page.loads() == set()
    assert str(tmp_path) not in json.dumps(report)
    assert report["commands"] == ["python -m reca_fast.demo --base tiny-openuni --seed 3 --steps 2 --prompts 2"]


@pytest.mark.parametrize("given", [["--prompts", "0"], ["--prompts", "201"], ["--steps", "0"], ["--seed", "-1"]])
def test_numbers_out_of_range_are_refused(given, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(given)
    assert ended.value.code == 2 and "--prompts goes from 1 to 200" in capsys.readouterr().err


def test_a_base_that_is_not_there_is_named_before_anything_is_lost(tmp_path, capsys) -> None:
    (tmp_path / "report.html").write_text("of yesterday")
    assert demo.main(["--base", str(tmp_path / "nothing"), "--out", str(tmp_path)]) == 2
    assert "nothing does not exist; set --base" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "of yesterday"


def test_a_base_in_the_folder_that_is_replaced_is_refused_and_stays(tmp_path, capsys) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    assert demo.main(["--base", str(trained), "--out", str(tmp_path)]) == 2
    assert "lies in" in capsys.readouterr().err and trained.is_dir()


def test_an_earlier_demo_gives_way_and_nothing_else_does(tmp_path, capsys) -> None:
    for name in demo.WRITTEN - {"report.html"}:
        (tmp_path / name).mkdir()
    (tmp_path / "report.html").write_text("of yesterday")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "holiday.jpg").write_text("a beach")
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert "holds holiday.jpg, which is not of this demo: move it away" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == len(demo.WRITTEN) + 1
    (tmp_path / "holiday.jpg").unlink()
    demo.make_room(tmp_path)
    assert list(tmp_path.iterdir()) == [] and "gives way" in capsys.readouterr().out


class Idle:
    """In place of processes that measure: remembers whether it was ended."""

    ended = False

    def __init__(self, processes: int) -> None:
        Idle.ended = False

    def __enter__(self) -> "Idle":
        return self

    def __exit__(self, *error: object) -> None:
        Idle.ended = True

    def begin(self, *args: object, **asked: object) -> None: ...


def killed(verb: str, out) -> int:
    """What each verb does when SIGTERM comes: training saves and ends in peace, the others leave at once."""
    if verb != "train":
        os.kill(os.getpid(), signal.SIGTERM)
    (out / "run").mkdir()
    (out / "run" / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    return 0


@pytest.mark.parametrize("verb", ["cache", "train", "export"])
def test_sigterm_ends_the_demo_and_its_processes(verb, tmp_path, monkeypatch, capsys) -> None:
    def reca_fast(args: list[str]) -> int:
        if args[0] == verb:
            return killed(verb, tmp_path)
        if args[0] == "train":
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 500, "loss": 1.0}\n')
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("reca_fast.cli.main", reca_fast)
    monkeypatch.setattr("reca_fast.proof.measuring.Measuring", Idle)
    assert demo.main(["--out", str(tmp_path), "--steps", "500"]) == demo.STOPPED and Idle.ended
    assert "stopped; the next one begins anew" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
