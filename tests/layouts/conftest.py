"""Drawing a benchmark by the command line, with a model that draws in no time."""

import pytest

from tests.layouts import stub


@pytest.fixture
def draw(reca_fast, monkeypatch, tmp_path):
    """draw(layout, prompts, *options): the benchmark drawn by the stub into tmp_path/out, and what was said."""
    monkeypatch.setattr("reca_fast.layouts.draw.open_model", stub.Model)
    monkeypatch.setattr("reca_fast.layouts.draw.fill_to_draw", lambda *_: None)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "stub.json").write_text("{}")

    def call(layout, prompts, *options):
        where = ["--model.path", tmp_path / "checkpoint", "--out", tmp_path / "out", "--device", "cpu"]
        return reca_fast("generate", "--layout", layout, "--prompts", prompts, *where, *options)

    return call
