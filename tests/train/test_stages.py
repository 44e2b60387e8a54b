"""Stages of one recipe: trained in a row, each from the weights of the one before it, and gone on with."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reca_fast.train import loop
from reca_fast.train.step import train_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

RECIPE = """\
base: tiny-bagel
steps: 2
save_every: 0
data: {tokens_per_pack: 200}
stages:
  - name: sft
    data: {tasks: {reca: 0, t2i: 1}}
    loss: {reca: 0, t2i: 1}
  - name: reca
    steps: 3
"""


@pytest.fixture
def train(reca_fast, tmp_path) -> Callable[..., dict[str, list[float]]]:
    """train(out, *options, code=0): a staged run in this process; name of a stage -> the losses of its steps."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def run(out: Path, *options: str) -> dict[str, list[float]]:
        said = reca_fast("train", "--config", tmp_path / "recipe.yaml", "--out", out, "--device", "cpu", *options)
        assert said.code == 0, said
        return {
            file.parent.name: [json.loads(line)["loss"] for line in file.read_text().splitlines()]
            for file in out.glob("*/metrics.jsonl")
        }

    return run


def test_a_staged_run_that_was_stopped_goes_on_bit_for_bit(train, reca_fast, tmp_path, monkeypatch) -> None:
    whole = train(tmp_path / "whole")
    assert {name: len(losses) for name, losses in whole.items()} == {"1-sft": 2, "2-reca": 3}

    def stopped_in_its_second_step(*given: Any) -> object:
        taken.append(given)
        if len(taken) == 2:
            signal.raise_signal(signal.SIGTERM)
        return train_step(*given)

    taken: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", stopped_in_its_second_step)
        done = train(tmp_path / "halves", "--steps", "3")
    assert {name: len(losses) for name, losses in done.items()} == {"1-sft": 2}
    assert train(tmp_path / "halves") == whole
    assert train(tmp_path / "halves") == whole  # nothing is left to do
    other = ["--config", tmp_path / "recipe.yaml", "--out", tmp_path / "halves", "--seed", "5"]
    assert "The saved run had seed=4396" in reca_fast("train", *other).sentence  # of a finished stage


def test_the_second_stage_starts_from_what_the_first_one_learned(train, reca_fast, tmp_path) -> None:
    learned = train(tmp_path / "run", "--steps", "1")["2-reca"]
    base = tmp_path / "run" / "1-sft" / "exported"
    alone = ["--config", "tiny-bagel", "--steps", "1", "--model.path", base, "--data.tokens_per_pack", "200"]
    assert reca_fast("train", *alone, "--out", tmp_path / "alone", "--device", "cpu").code == 0
    assert [json.loads((tmp_path / "alone" / "metrics.jsonl").read_text())["loss"]] == learned


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ("{sft: {}}", "stages is a list of options, each with a name"),
        ("[{steps: 2}]", "a stage's name is made of small letters, digits and hyphens, not None"),
        ("[{name: a, stepz: 2}]", "Unknown option 'stepz'. Did you mean 'steps'?"),
        ("[{name: a}, {name: b, loss: {i2t: 1}}]", "set --model.freeze_und false as well"),
        ("[{name: a}, {name: b, device: cuda}]", "device and parallel.replicate must be the same"),
    ],
)
def test_a_mistake_in_any_stage_is_told_before_the_first_one_begins(stages, says, reca_fast, tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: tiny-bagel\nstages: {stages}\n")
    assert says in reca_fast("train", "--config", recipe, "--out", tmp_path / "out").sentence
    assert not (tmp_path / "out").exists()


def test_two_processes_train_the_stages_of_one(reca_fast, launch, arguments, tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("base: tiny-bagel\n", ""))
    options = ["--config", str(tmp_path / "recipe.yaml"), "--steps", "2"]
    together = launch(tmp_path / "two", *options, processes=2)
    assert reca_fast("train", *arguments(tmp_path / "one"), *options).code == 0
    assert together.wait(120) == 0, together.said
    for stage in ("1-sft", "2-reca"):
        one, two = (
            [json.loads(line)["loss"] for line in (tmp_path / run / stage / "metrics.jsonl").read_text().splitlines()]
            for run in ("one", "two")
        )
        assert two == pytest.approx(one, rel=1e-5)
