"""A run that is killed, stopped or out of disk goes on with the same command as if nothing had happened."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from reca_fast.checkpoints import CheckpointStore, SavedWeights
from reca_fast.checkpoints.checksums import checksum, read_checksums, write_checksums
from reca_fast.train.metrics import draw_curve

FULL = ["--steps", "6", "--save_every", "2", "--optim.ema_decay", "0.5", "--optim.schedule", "cosine"]


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """(run folder, metrics) of six steps in one go."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, train(out, *FULL)


@pytest.fixture
def half(whole, tmp_path: Path) -> Path:
    """A run folder that was left after step 4, with the metrics of a fifth step that was not saved."""
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "checkpoints" / "step-0000006")
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:5]))
    return out


def course(metrics: list[dict]) -> list[tuple]:
    """What must not depend on interruptions, bit for bit."""
    return [(line["step"], line["loss"], line["grad_norm"], line["lr"], line["images"]) for line in metrics]


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


KILL = "import os, signal, pathlib, torch\nkill = lambda: os.kill(os.getpid(), signal.SIGKILL)\ncalls = 0\n"
KILLED = {
    # where kill -9 falls: (code that brings it about, what it leaves behind)
    "in the backward pass of step 4": (
        KILL
        + """
backward = torch.Tensor.backward
def killed(*args, **more):
    global calls
    calls += 1  # two packs a step
    kill() if calls == 8 else backward(*args, **more)
torch.Tensor.backward = killed
""",
        ["step-0000002"],
    ),
    "while the shards of step 4 are written": (
        KILL
        + """
from reca_fast.checkpoints import store
write = store.write_shards
def killed(*args, **more):
    global calls
    calls += 1
    checksum = write(*args, **more)
    return kill() if calls == 2 else checksum
store.write_shards = killed
""",
        [".step-0000004.partial", "step-0000002"],
    ),
    "between the save and the rename of step 4": (
        KILL
        + """
rename = pathlib.Path.rename
pathlib.Path.rename = lambda path, to: kill() if path.name == ".step-0000004.partial" else rename(path, to)
""",
        [".step-0000004.partial", "step-0000002"],
    ),
    "while step 2 is removed in favour of step 6": (
        KILL
        + """
import shutil
rmtree = shutil.rmtree
def killed(path, **more):
    if str(path).endswith(".removed"):
        (path / "run_state.json").unlink()
        kill()
    rmtree(path, **more)
shutil.rmtree = killed
""",
        [".step-0000002.removed", "step-0000004", "step-0000006"],
    ),
}


@pytest.mark.parametrize("where", KILLED)
def test_kill_nine_changes_nothing(where, whole, launch, train, tmp_path):
    code, left = KILLED[where]
    killed = launch(tmp_path, *FULL, before=code)
    assert killed.wait() == -signal.SIGKILL, killed.said
    assert names(tmp_path) == left
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.2')  # what a kill in the middle of a write would leave

    assert course(train(tmp_path, *FULL)) == course(whole[1])
    assert names(tmp_path) == ["step-0000004", "step-0000006"]
    for section in ("model", "average"):
        ours, theirs = (SavedWeights(out / "checkpoints/step-0000006", section) for out in (tmp_path, whole[0]))
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_kill_from_outside_while_saving(whole, launch, train, tmp_path):
    slow = "import time; from reca_fast.checkpoints import store; write = store.write_shards\n"
    slow += "store.write_shards = lambda *args, **more: (write(*args, **more), time.sleep(30))[0]\n"
    running = launch(tmp_path, *FULL, before=slow)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("checkpoints/.step-*.partial")):
        assert time.monotonic() < deadline, running.said
        time.sleep(0.01)
    running.kill()
    assert course(train(tmp_path, *FULL)) == course(whole[1])
    assert names(tmp_path) == ["step-0000004", "step-0000006"]


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_signal_finishes_the_step_and_saves(number, code, whole, launch, train, tmp_path):
    running = launch(tmp_path, *FULL, before=at_step(3, f"os.kill(os.getpid(), signal.{number})"))
    assert running.wait() == code, running.said
    assert "Step 3: stopped, the same command goes on from here" in running.said
    assert "Traceback" not in running.said
    assert names(tmp_path) == ["step-0000002", "step-0000003"]
    assert course(train(tmp_path, *FULL)) == course(whole[1])


def test_a_second_ctrl_c_ends_at_once(launch, tmp_path):
    twice = "[os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]"
    running = launch(tmp_path, *FULL, before=at_step(3, twice))
    assert running.wait() == -signal.SIGINT
    assert "Traceback" not in running.said
    assert names(tmp_path) == ["step-0000002"]


def at_step(number: int, action: str) -> str:
    """Code that does something in the middle of a step."""
    return f"""
import os, signal
from reca_fast.optim import Update
update, calls = Update.decide, 0
def step(*args, **more):
    global calls
    calls += 1
    if calls == {number}:
        {action}
    return update(*args, **more)
Update.decide = step
"""


def test_a_full_disk_is_one_sentence_and_costs_nothing(whole, half, launch, train):
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"  # shards are larger
    full = launch(half, *FULL, before=limit)
    assert full.wait() == 2, full.said
    *_, sentence = full.said.splitlines()
    assert sentence.startswith("reca-fast: Checkpoint ") and "step-0000006 could not be saved" in sentence
    assert "File too large" in sentence and "step-0000004. Free some space" in sentence
    assert "Traceback" not in full.said
    assert names(half) == ["step-0000004"]
    assert course(train(half, *FULL)) == course(whole[1])


SMALL = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
NO_EVENTS = """
from tensorboard.summary.writer.record_writer import RecordWriter
def write(*args):
    raise OSError(28, "No space left on device")
RecordWriter.write = write
"""


@pytest.mark.parametrize("code", [SMALL, NO_EVENTS], ids=["metrics.jsonl", "TensorBoard's thread"])
def test_logs_on_a_full_disk_are_one_sentence(code, half, launch):
    size = (half / "metrics.jsonl").stat().st_size - 50  # room for four lines of metrics, not for five
    full = launch(half, *FULL, before=code.format(size))
    assert full.wait() == 2, full.said
    assert full.said.splitlines()[-1].startswith("reca-fast: The run folder cannot be written"), full.said
    assert "Traceback" not in full.said, full.said


def test_a_run_folder_that_cannot_be_created_is_one_sentence(reca_fast, arguments, tmp_path):
    (tmp_path / "file").write_text("")
    assert "out is empty; set --out" in reca_fast("train", *arguments(tmp_path), "--out", "").sentence
    for out in (tmp_path / "file" / "run", Path("/proc/run")):
        assert f"The run folder {out} cannot be created" in reca_fast("train", *arguments(out)).sentence


def test_a_damaged_checkpoint_is_named_and_replaced(whole, half, train):
    damaged = half / "checkpoints" / "step-0000006"
    shutil.copytree(half / "checkpoints" / "step-0000004", damaged)
    shard = damaged / "shard-00000.safetensors"
    shard.write_bytes(flipped(shard.read_bytes(), shard.stat().st_size // 2))
    assert course(train(half, *FULL)) == course(whole[1])
    said = " ".join((half / "said.txt").read_text().split())
    assert f"{damaged} is damaged (the checksum of {shard.name} differs) and left aside." in said
    assert "Resumed after step 4" in said
    assert CheckpointStore(half / "checkpoints").newest() == damaged  # written anew


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_nothing_is_begun_anew_over_damaged_checkpoints(half, reca_fast, arguments):
    (half / "checkpoints" / "step-0000004" / "run_state.json").unlink()
    before = names(half)
    sentence = reca_fast("train", *arguments(half), *FULL).sentence
    assert "step-0000004 is damaged (" in sentence and "holds no whole checkpoint" in sentence
    assert names(half) == before


def test_a_run_that_has_gone_further_ends_at_once(half, reca_fast, arguments):
    """Also: a line of metrics that is none ends the good part of the file."""
    with (half / "metrics.jsonl").open("ab") as file:
        file.truncate(len(b"".join((half / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:4])))
        file.write(b'\xff\x00\n{"loss": 1}\n[]\n')
    said = reca_fast("train", *arguments(half), *FULL, "--steps", "3")
    assert said.code == 0, said.err
    assert "Already at step 4 of 3, nothing to do; raise --steps." in said.out and "finished" not in said.out
    lines = (half / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_curve_skips_what_is_no_line_of_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2}\n\xff\n{"loss": 1}\n')
    draw_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--resume", "false"], "--resume is false"),
        (["--data.packs_per_step", "1"], "data.packs_per_step=2, now it is 1"),
        (["--model.freeze_und", "false"], "model.freeze_und=True, now it is False"),
        (["--optim.ema_decay", "0"], "optim.ema_decay=0.5, now it is 0"),
        (["--data.tokens_per_pack", "200"], "data.tokens_per_pack=300, now it is 200"),
        (["--data.seed", "1"], "data.seed=42, now it is 1"),
        (["--data.shuffle", "false"], "data.shuffle=True, now it is False"),
        (["--seed", "1"], "seed=4396, now it is 1"),
        (["--optim.weight_decay", "0.1"], "optim.weight_decay=0.0, now it is 0.1"),
        (["--optim.betas", "[0.8, 0.95]"], "optim.betas=[0.9, 0.99], now it is [0.8, 0.95]"),
        (["--optim.eps", "1e-8"], "optim.eps=1e-15, now it is 1e-08"),
    ],
)
def test_what_cannot_be_resumed_is_refused(options, says, half, reca_fast, arguments):
    said = reca_fast("train", *arguments(half), *FULL, *options)
    assert says in said.sentence


@pytest.mark.parametrize("part", ["lanes", "generators"])
def test_a_state_that_says_too_little_is_damage(part, half, reca_fast, arguments):
    """Whole by its checksums: written by another program."""
    folder = max(half.glob("checkpoints/step-*"))
    file = folder / "run_state.json"
    state = json.loads(file.read_text())
    if part == "lanes":
        state["lanes"] = {}
    else:
        state["generators"][0]["numpy"][1] = [1, 2]
    file.write_text(json.dumps(state))
    write_checksums(folder, read_checksums(folder) | {file.name: checksum(file)})
    said = reca_fast("train", *arguments(half), *FULL).sentence
    assert {"lanes": "does not say where in the data", "generators": "is damaged"}[part] in said


def test_other_data_is_refused(half, reca_fast, arguments, pictures, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(pictures, fewer)
    (fewer / "00.png").unlink()
    said = reca_fast("train", *arguments(half), *FULL, "--data.source", fewer)
    assert "is not what the saved run had there, it differs in number of records" in said.sentence


def test_the_average_is_exported(whole, reca_fast, tmp_path):
    """Also: live and average differ, or this would show nothing."""
    from safetensors.torch import load_file

    for weights in ("live", "average"):
        assert reca_fast("export", whole[0], tmp_path / weights, "--weights", weights).code == 0
    live, average = (load_file(tmp_path / weights / "ema.safetensors") for weights in ("live", "average"))
    key = "language_model.model.layers.0.mlp_moe_gen.gate_proj.weight"
    saved = SavedWeights(whole[0] / "checkpoints/step-0000006", "average")
    assert torch.equal(average[key], saved["layers.0.gen.gate_proj.weight"])
    assert not torch.equal(live[key], average[key])
