"""Steps with a loss or gradient of inf or NaN: skipped without a trace, named, counted, at last refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from reca_fast.train.metrics import draw_curve

BROKEN = """
import math, os, torch
from reca_fast.models.bagel.model import BagelModel

loss_sums, calls = BagelModel.loss_sums, 0

def broken(self, *args):
    global calls
    calls += 1
    sums = loss_sums(self, *args)
    if calls in CALLS and os.environ.get("RANK", "0") == "0":
        return {term: total * math.nan for term, total in sums.items()}
    return sums

BagelModel.loss_sums = broken
"""
ONE_PACK = ["--data.packs_per_step", "1", "--optim.ema_decay", "0.5"]


def broken(*steps: int) -> str:
    """Code that makes the loss of these packs NaN, counted from 1; of several processes, those of the first one."""
    return BROKEN.replace("CALLS", repr(steps))


def saved(out: Path, step: int) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted((out / "checkpoints" / f"step-{step:07d}").glob("shard-*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {f"{path.name}/{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    assert ours.keys() == theirs.keys() and len(ours) > 20
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_skipped_step_leaves_everything_as_it_was(processes, train, tmp_path):
    """Weights, moments, the optimizer's step counts, the average; one process has the NaN, all of them skip."""
    packs = ["--data.packs_per_step", str(processes)]
    rows = train(
        tmp_path,
        *(*ONE_PACK, *packs, "--save_every", "1", "--keep", "9"),
        processes=processes,
        before=broken(3),
    )
    assert [row["skipped"] for row in rows] == [
        [],
        [],
        [{"step": 3, "not_finite": ["loss_reca", "grad_norm"]}],
        [],
    ]
    assert (
        [row["loss"] is None for row in rows]
        == [row["grad_norm"] is None for row in rows]
        == [False, False, True, False]
    )
    assert equal(saved(tmp_path, 3), saved(tmp_path, 2))
    assert not equal(saved(tmp_path, 4), saved(tmp_path, 3))
    said = (tmp_path / "said.txt").read_text()
    assert "Step 3 skipped: inf or NaN in loss_reca and grad_norm." in said
    assert "Step 4: finished (1 skipped because of inf or NaN)." in said


def test_it_is_named_at_the_next_line_of_metrics(train, tmp_path):
    rows = train(tmp_path, *ONE_PACK, "--save_every", "0", "--log_every", "4", before=broken(2))
    (row,) = rows
    assert row["step"] == 4 and math.isfinite(row["loss"])
    assert row["skipped"] == [{"step": 2, "not_finite": ["loss_reca", "grad_norm"]}]


def test_too_many_in_a_row_end_the_run(launch, tmp_path):
    limit = ["--optim.max_skipped_steps", "1", "--save_every", "2", "--steps", "6", "--log_every", "6"]
    training = launch(tmp_path, *ONE_PACK, *limit, before=broken(3, 4))
    assert training.wait() == 2, training.said
    assert training.said.splitlines()[-1] == (
        "reca-fast: Steps 3 to 4 were skipped because of inf or NaN in loss_reca and grad_norm, and "
        "optim.max_skipped_steps=1 allows no more in a row. No skipped step changed anything; "
        f"resume from {tmp_path}/checkpoints/step-0000002 with a lower --optim.lr."
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000002"]


def test_the_count_goes_on_after_a_resume(launch, train, tmp_path):
    """Step 2 is skipped and saved; the resumed process skips its first one, which is the second in a row."""
    limit = ["--optim.max_skipped_steps", "1"]
    train(tmp_path, *ONE_PACK, *limit, "--steps", "2", before=broken(2))
    training = launch(tmp_path, *ONE_PACK, *limit, before=broken(1))
    assert training.wait() == 2, training.said
    assert "Steps 2 to 3 were skipped" in training.said


def test_weights_that_were_never_any_good(launch, tmp_path):
    training = launch(tmp_path, *ONE_PACK, "--optim.max_skipped_steps", "0", before=broken(1))
    assert training.wait() == 2, training.said
    assert "Step 1 was skipped" in training.said and "look at the weights in model.path" in training.said
    assert not (tmp_path / "checkpoints").exists()


def test_the_curve_has_no_point_there(tmp_path):
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0
