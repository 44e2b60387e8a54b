"""Two processes that share Harmon's weights, one on a pack of reca and one on a pack of i2t."""

import json
from pathlib import Path

import pytest

STEPS, HALF = 4, 2


def options(folder: Path) -> list[str]:
    text = f"--model.path {folder} --model.freeze_und false --data.source shipped:shapes --data.caption_column short"
    text += " --data.tasks.i2t 1 --loss.i2t 1 --data.mix pack --data.condition_resize.stride 8"
    text += " --data.target_resize.fit squash --data.condition_resize.fit squash"
    return text.split()


def rows(out: Path) -> list[tuple[float, float, float]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(line["loss_reca"], line["loss_i2t"], line["grad_norm"]) for line in lines]


@pytest.mark.exhaustive
def test_they_train_as_one_does_and_resume_bit_for_bit(tiny, launch, tmp_path) -> None:
    whole = launch(tmp_path / "whole", *options(tiny), processes=2)
    assert whole.wait() == 0, whole.said
    for steps in (HALF, STEPS):
        halves = launch(tmp_path / "halves", *options(tiny), "--steps", str(steps), processes=2)
        assert halves.wait() == 0, halves.said
    alone = launch(tmp_path / "alone", *options(tiny))
    assert alone.wait() == 0, alone.said
    found = rows(tmp_path / "whole")
    assert len(found) == STEPS and rows(tmp_path / "halves") == found
    for ours, theirs in zip(found, rows(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
