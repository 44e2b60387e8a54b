"""The tiny models: recipes that train with no other argument than where to."""

import json
import os
from typing import Any

import pytest

from reca_fast.config import ModelConfig
from reca_fast.config.recipes import shipped
from reca_fast.models import TINY, open_model
from reca_fast.models.tiny import make_tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_tiny_model_has_a_recipe_of_its_name() -> None:
    assert {name for name in shipped() if name.startswith("tiny-")} == TINY.keys()


def mean(rows: list[dict[str, Any]], name: str) -> float:
    """Over those steps that have the number: not every step has samples of every task."""
    found = [row[name] for row in rows if row.get(name) is not None]
    return sum(found) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_its_recipe_trains_and_the_loss_falls(name, reca_fast, tmp_path) -> None:
    said = reca_fast("train", "--config", name, "--out", tmp_path, "--device", "cpu")
    assert said.code == 0, said
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert mean(rows[-len(rows) // 4 :], "loss") < 0.9 * mean(rows[: len(rows) // 4], "loss")
    for task in {name for row in rows for name in row if name.startswith("loss_") and "tokens" not in name}:
        assert mean(rows[-len(rows) // 4 :], task) < mean(rows[: len(rows) // 4], task), task
    again = reca_fast("train", "--config", name, "--out", tmp_path, "--device", "cpu")  # the weights are found again
    assert again.code == 0 and f"weights: {tmp_path / name}" in again.out, again


def test_its_weights_appear_whole_and_once(tmp_path, monkeypatch) -> None:
    made = make_tiny("tiny-bagel", tmp_path / "run" / "tiny-bagel")
    written = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert os.listdir(tmp_path / "run") == ["tiny-bagel"]
    assert make_tiny("tiny-bagel", made) == made
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == written

    def fails(folder: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reca_fast.models.bagel.tiny.write_tiny_bagel", fails)
    with pytest.raises(Exception, match="cannot be written: No space left"):
        make_tiny("tiny-bagel", tmp_path / "full" / "tiny-bagel")
    assert os.listdir(tmp_path / "full") == []


def test_without_a_run_folder_they_are_made_for_this_process(tmp_path) -> None:
    options = ModelConfig(name="tiny-bagel")
    first, second = open_model(options), open_model(options)
    assert first.files() == second.files() and all(path.is_file() for path in first.files())
