"""`python -m reca_fast.demo` with a base that knows nothing: it measures, trains, reports, and says that none shows."""

import json

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
    assert report["before"]["scores"]["dense"]["count"] == report["after"]["scores"]["dense"]["count"] == 2
    assert report["seeds"] == {"seed": 3, "data.seed": 3, "drawing": 3} and report["loss"]["steps"] == 2
    assert report["before"]["seed"] == 3 and not report["effect"]["shown"]
    page = Page((out / "report.html").read_text())
    assert page.problems == [] and page.loads() == set()
    assert str(tmp_path) not in json.dumps(report)


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
