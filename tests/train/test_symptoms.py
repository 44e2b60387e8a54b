"""Two faults that no error tells are told once on the console and in metrics.jsonl: copied tokens, and noise."""

import json

import pytest
import torch

from reca_fast.config import RunConfig
from reca_fast.evaluation.reconstruction import Reconstruction
from reca_fast.models.bagel.tiny.photos import crops
from reca_fast.models.showo import ShowoModel
from reca_fast.sample import RECA
from reca_fast.train.distributed import Processes
from reca_fast.train.stats import StepStats
from reca_fast.train.symptoms import COPIED_TOKENS, LINES, NOISE, Symptoms
from reca_fast.train.telemetry import Telemetry

LOW, HIGH = 0.05, 3.0


def names(symptoms: Symptoms, *losses: float | None) -> list[list[str]]:
    return [[each.name for each in symptoms.of_losses({RECA: loss})] for loss in losses]


def test_a_loss_must_stay_nearly_zero_for_some_lines() -> None:
    quiet: list[str] = []
    told = [COPIED_TOKENS]
    assert names(Symptoms(0.1), *[LOW] * (LINES - 1), HIGH, *[LOW] * LINES) == [quiet] * (2 * LINES - 1) + [told]
    assert names(Symptoms(0.1), *[LOW] * (LINES - 1), None, LOW) == [quiet] * LINES + [told]  # one was skipped


def test_a_loss_that_is_no_cross_entropy_of_codes_tells_nothing() -> None:
    assert names(Symptoms(None), *[0.0] * 9) == [[]] * 9
    assert Symptoms(0.1).of_losses({"t2i": 0.0}) == []


def _picture(seed: int | None) -> torch.Tensor:
    if seed is None:
        ((_, crop),) = crops("train", 1)
        return torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8).view(64, 64, 3)
    return torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def telemetry(tmp_path):
    processes = Processes()
    processes.join("cpu")
    telemetry = Telemetry(RunConfig(out=str(tmp_path), steps=20), processes, copying_below=0.1)
    telemetry.start(0, 20)
    yield telemetry
    telemetry.close()


def test_a_warning_is_said_once_and_written_every_time(telemetry, tmp_path, capsys) -> None:
    original = _picture(None)
    for step in range(1, LINES + 3):
        if step in (2, 4):
            telemetry.judge(step, [Reconstruction("", original, _picture(step))])
        if step == 3:
            telemetry.judge(step, [Reconstruction("", original, original)])
        sums, norm = torch.tensor([10 * LOW]), torch.ones(())
        telemetry.log(step, StepStats([RECA], sums, {RECA: 10}, norm, lr=0.1, tokens=10, images=1, flops=1.0), [])
    said = capsys.readouterr().out
    assert said.count(f"Warning {COPIED_TOKENS}, step {LINES}: ") == said.count("Warning copied") == 1
    assert said.count(f"Warning {NOISE}, step 2: ") == said.count("Warning samples") == 1
    assert "data.blur_sigma" in said and "optim.lr" in said
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    written = {line["step"]: line["warnings"] for line in lines if "warnings" in line}
    assert written == {2: [NOISE], 4: [NOISE]} | {s: [COPIED_TOKENS] for s in range(LINES, LINES + 3)}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_of_show_o_tells_both(reca_fast, tmp_path, monkeypatch) -> None:
    """How losses and grids come to where they are looked at; that they are that bad has to be pretended."""
    monkeypatch.setattr(ShowoModel, "copying_below", 100.0)
    monkeypatch.setattr("reca_fast.train.symptoms.is_noise", lambda grid: len(grid) == 1)
    options = ["--steps", LINES + 1, "--sample_every", 3, "--sample_count", 1, "--sampling.steps", 1]
    options += [f"--{group}.{task}=0" for group in ("data.tasks", "loss") for task in ("t2i", "i2t")]
    options += ["--data.tokens_per_pack", 200, "--device", "cpu"]
    said = reca_fast("train", "--config", "tiny-showo-vq", "--out", tmp_path, *options)
    assert said.code == 0, said
    assert said.out.count(f"Warning {COPIED_TOKENS}, step {LINES}: ") == said.out.count("Warning copied") == 1
    assert said.out.count(f"Warning {NOISE}, step 3: ") == said.out.count("Warning samples") == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("warnings") for line in lines[2:]] == [[NOISE], None, [COPIED_TOKENS], [NOISE, COPIED_TOKENS]]
