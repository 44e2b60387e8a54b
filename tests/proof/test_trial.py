"""A trial by its own commands: trained, exported, measured; stopped and gone on with; and what it says of a failure."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from reca_fast.cli.options import parse_stages
from reca_fast.config import RunConfig
from reca_fast.models.tiny import make_tiny
from reca_fast.proof.environment import hash_of
from reca_fast.proof.trial import Failed, Stopped, Trial, finished, of_training, run_trial
from reca_fast.train.folder import RunFolder

SIZES = "{max_size: 32, min_size: 32, stride: 8, fit: crop}"
RECIPE = f"""
base: tiny-openuni
data:
  source: toy:posttraining
  condition_resize: {SIZES}
  target_resize: {SIZES}
  tokens_per_pack: 400
optim: {{ema_decay: 0.5}}
sampling: {{steps: 1, guidance: 1.0, together: 64}}
steps: 3
"""
WAITS = "import sys, time; print('begun', flush=True); time.sleep(60)"
STOPS = (
    "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(0)); print('begun', flush=True); time.sleep(60)"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny("tiny-openuni", tmp_path_factory.mktemp("base") / "tiny-openuni")


@pytest.fixture
def trial(base, tmp_path) -> Trial:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    args = ("--config", str(recipe), "--model.path", str(base), "--device", "cpu")
    stages = parse_stages(RunConfig, "train", args)
    return Trial("arm", 0, tmp_path / "arm", args, stages, base, hash_of(base), count=1)


@pytest.mark.exhaustive  # three processes that import torch
def test_a_trial_is_trained_exported_and_measured(trial) -> None:
    """The average of the weights is measured where the recipe keeps one, and the same trial is not run again."""
    result = run_trial(trial, threading.Event())
    assert (result["steps"], result["seed"], len(result["curve"])) == (3, 0, 3) and result["samples_per_step"] > 1
    assert result["scores"].keys() >= {"overall", "dense", "reconstruction"} and result["scores"]["dense"]["count"] == 1
    assert result["frozen"]["differing"] == [] and result["frozen"]["tensors"] > 10
    log = (trial.folder / "log.txt").read_text()
    assert log.count("$ python") == 3 and "(average) of step-0000003" in log
    assert not (trial.folder / "exported").exists() and trial.steps_done() == 3
    assert run_trial(trial, threading.Event()) == finished(trial) == json.loads(json.dumps(result))
    assert (trial.folder / "log.txt").read_text() == log


def test_the_gradient_is_the_geometric_mean_of_its_norms_in_the_last_quarter(trial) -> None:
    """A step that was skipped has none; a path without any gradient has no mean."""
    trial.run.mkdir(parents=True)
    for norms, mean in (([0.5, None, 2.0], 1.0), ([0.0, None, 0.0], None)):
        rows = [{"loss": 1.0, "grad_norm": norm, "images": 64} for norm in [9.0] * 9 + norms]
        (trial.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert of_training(trial)["gradient"] == mean


def test_a_stopped_trial_ends_its_command(trial) -> None:
    """Whether the command ends well on SIGTERM, as a training that saves does, or is ended by it."""
    for program in (STOPS, WAITS):
        stop = threading.Event()
        waiting = replace(trial, folder=trial.folder / str(len(program)), program=("-c", program))
        threading.Timer(0.5, stop.set).start()
        began = time.monotonic()
        with pytest.raises(Stopped):
            run_trial(waiting, stop)
        assert time.monotonic() - began < 30 and finished(waiting) is None


def test_a_failure_names_its_last_words_and_the_log(trial) -> None:
    failing = replace(trial, program=("-c", "import sys; print('many words'); sys.exit('reca-fast: no space left.')"))
    with pytest.raises(Failed, match=r"arm, seed 0: reca-fast: no space left\. \(.*log\.txt has it all\)"):
        run_trial(failing, threading.Event())
    assert finished(failing) is None


def test_a_training_that_ends_too_early_is_a_failure(trial) -> None:
    with pytest.raises(Failed, match="ended before its last step"):
        run_trial(replace(trial, program=("-c", "pass")), threading.Event())


def test_a_trial_waits_for_the_training_of_a_killed_study(trial, monkeypatch) -> None:
    """It finds the lock held, as by a training that has not noticed yet that its study is gone, and begins when it is
    free.
    """
    seen = []
    (trial.folder / "run").mkdir(parents=True)

    class Held(RunFolder):
        def take(self) -> str:
            seen.append(self.path)
            return "in use" if len(seen) < 3 else ""

    monkeypatch.setattr("reca_fast.proof.trial.RunFolder", Held)
    monkeypatch.setattr("reca_fast.proof.trial.time.sleep", lambda seconds: None)
    with pytest.raises(Failed):
        run_trial(replace(trial, program=("-c", "pass")), threading.Event())
    assert seen == [trial.folder / "run"] * 3
