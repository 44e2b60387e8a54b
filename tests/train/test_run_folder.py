"""A run folder belongs to one run, its metrics lose no good line, and a run whose folder or launcher is gone ends."""

import errno
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from reca_fast.train.folder import LOCK_FILE, RunFolder
from reca_fast.train.metrics import cut_after

ENDLESS = ["--steps", "1000000", "--save_every", "1", "--log_every", "1"]


def wait_for(condition, training, seconds: float = 60):
    """The first true value of condition()."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, training.said
        time.sleep(0.02)
    return value


def steps(out: Path) -> list[int]:
    path = out / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(launch, arguments, reca_fast, train, tmp_path):
    first = launch(tmp_path, *ENDLESS)
    wait_for(lambda: len(steps(tmp_path)) > 1, first)
    (process,) = first.processes
    sentence = reca_fast("train", *arguments(tmp_path)).sentence
    assert f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} since 20" in sentence
    assert sentence.endswith("; wait, end that run, or name another --out.\n")
    assert reca_fast("export", tmp_path, tmp_path / "exported").code == 0  # it only reads
    first.kill()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == process.pid
    last = steps(tmp_path)[-1]
    metrics = train(tmp_path, "--steps", str(last + 2))
    assert [line["step"] for line in metrics] == list(range(1, last + 3))  # of both runs, none twice
    assert (tmp_path / LOCK_FILE).read_text() == ""


def test_several_processes_are_refused_with_one_sentence(launch, tmp_path):
    with RunFolder(tmp_path) as mine:
        assert mine.take() == ""
        second = launch(tmp_path, processes=2)
        assert second.wait() == 2
        assert f"is in use by process {os.getpid()} on" in second.said
        assert second.said.count("reca-fast: ") == 1 and "Traceback" not in second.said


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": "x"}', "\xff", "[" * 5000])
def test_whatever_stands_in_the_file_of_a_lock_that_nobody_holds(content, tmp_path):
    (tmp_path / LOCK_FILE).write_text(content, "latin-1")
    with RunFolder(tmp_path) as folder:
        assert folder.take() == ""
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_lock_from_another_host_is_told(tmp_path, capsys):
    (tmp_path / LOCK_FILE).write_text('{"host": "node7", "pid": 12, "since": "yesterday"}\n')
    with RunFolder(tmp_path) as folder:
        assert folder.take() == ""
    said = capsys.readouterr().err
    assert "was left behind by process 12 on node7 since yesterday" in said and "make sure that it has ended" in said


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(code, tmp_path, monkeypatch, capsys):
    def unsupported(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.lockf", unsupported)
    with RunFolder(tmp_path) as folder:
        assert folder.take() == ""
    assert f"The file system of {tmp_path} does not lock files" in capsys.readouterr().err


@pytest.mark.parametrize("name", [LOCK_FILE, "metrics.jsonl"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere/x", path)])
def test_what_is_no_file_is_not_waited_for(name, make, reca_fast, arguments, tmp_path):
    make(tmp_path / name)
    assert f"{tmp_path / name} is no file; remove it" in reca_fast("train", *arguments(tmp_path)).sentence


def line(step: int) -> bytes:
    return json.dumps({"step": step, "loss": 1.0}).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "left", "damaged"),
    [
        (line(1) + line(2), line(1) + line(2), []),
        (line(1) + line(2) + line(3) + line(4), line(1) + line(2) + line(3), []),
        (line(1) + b"\xff\x00garbage\n" + line(2) + line(3), line(1) + line(2) + line(3), [2]),
        (line(1) + b'{"step": 2, "lo' + line(3) + line(4), line(1), [2]),
        (b"[]\n" + line(1) + b'{"loss": 1}\n' + line(2)[:9], line(1), [1, 3, 4]),
        (line(1) + b'{"step": NaN, "loss": 1}\n' + b"[" * 100_000 + b"\n" + line(3), line(1) + line(3), [2, 3]),
        (b'{"step": true, "loss": 1}\n{"step": 1, "loss": ' + b"9" * 400 + b"}\n", b"", [1, 2]),
        (line(2) + b"\n" + line(3), line(2) + line(3), [2]),
        (line(1) + line(2)[:-1], line(1) + line(2), []),  # as editors leave it
        (b"", b"", []),
    ],
)
def test_good_lines_of_metrics_stay_and_damaged_ones_are_named(content, left, damaged, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    assert cut_after(path, 3) == damaged
    assert path.read_bytes() == left
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_damaged_line_of_metrics_is_said_on_resume(train, tmp_path):
    train(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\x00\x00\n" + b"".join(lines[2:]))
    metrics = train(tmp_path, "--steps", "5")
    assert [row["step"] for row in metrics] == [1, 3, 4, 5]
    assert f"{path}: line 2 damaged and left out." in " ".join((tmp_path / "said.txt").read_text().split())


MEDDLE = """
import os, shutil
from pathlib import Path
from reca_fast.optim import Update
update, calls = Update.decide, 0
def step(*args, **more):
    global calls
    calls += 1
    if calls == 3 and os.environ.get("RANK", "0") == "0":
        {0}
    return update(*args, **more)
Update.decide = step
"""
REMOVED = {
    "removed": "shutil.rmtree({out!r})",
    "moved": "os.rename({out!r}, {out!r} + '-2')",
    "replaced": "shutil.rmtree({out!r}); os.mkdir({out!r})",
    "metrics removed": "os.remove({out!r} + '/metrics.jsonl')",
}


@pytest.mark.parametrize("how", REMOVED)
def test_a_run_whose_folder_is_taken_away_ends_with_one_sentence(how, launch, tmp_path):
    out = tmp_path / "run"
    code = MEDDLE.format(REMOVED[how].format(out=str(out)))
    running = launch(tmp_path, "--out", str(out), "--save_every", "3", before=code)
    assert running.wait() == 2, running.said
    assert "Traceback" not in running.said
    assert running.said.splitlines()[-1].startswith(
        f"reca-fast: {out / 'metrics.jsonl'} was removed, moved or replaced"
    )


def test_a_folder_that_is_removed_between_lines_of_metrics(launch, tmp_path):
    """The grid meets it first."""
    out = tmp_path / "run"
    code = MEDDLE.format(f"shutil.rmtree({str(out)!r})")
    options = ["--log_every", "100", "--save_every", "0", "--sample_every", "3", "--sampling.steps", "2"]
    running = launch(tmp_path, "--out", str(out), *options, before=code, processes=2)
    assert running.wait() == 2, running.said
    assert "Traceback" not in running.said and running.said.count("reca-fast: ") == 1, running.said


ORPHAN = """
import os
{0}
if child := os.fork():  # this process stands for torchrun, its child for a rank
    open({1!r}, "w").write(str(child))
    os.waitpid(child, 0)
    os._exit(0)
"""


def alive(pid: int) -> bool:
    """Whether it runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def orphaned(launch, tmp_path: Path, environment: str):
    """(a run whose parent has been killed after a few steps, its process id)."""
    note = tmp_path / "pid"
    parent = launch(tmp_path, "--steps", "1000000", "--save_every", "0", before=ORPHAN.format(environment, str(note)))
    wait_for(lambda: len(steps(tmp_path)) > 1, parent)
    parent.kill()
    return parent, int(note.read_text())


def test_ranks_stop_when_torchrun_is_killed(launch, tmp_path):
    """With the step at hand finished and saved, as on SIGTERM."""
    parent, rank = orphaned(launch, tmp_path, 'os.environ["TORCHELASTIC_RUN_ID"] = "none"')
    try:
        wait_for(lambda: not alive(rank), parent, seconds=20)
    finally:
        if alive(rank):
            os.kill(rank, signal.SIGKILL)
    assert f"The parent (process {parent.processes[0].pid}) is gone" in parent.said
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert saved.name == f"step-{steps(tmp_path)[-1]:07d}"


def test_ranks_stop_when_what_started_torchrun_is_killed(launch, tmp_path):
    """A study that is killed leaves torchrun behind, which notices nothing."""
    starter = subprocess.Popen(["sleep", "600"])
    before = f'import os; os.environ["RECA_FAST_STOPS_WITH_PARENT"] = "{starter.pid}"'
    running = launch(tmp_path, "--steps", "1000000", "--save_every", "0", before=before)
    wait_for(lambda: len(steps(tmp_path)) > 1, running)
    starter.kill()
    starter.wait()
    assert running.wait() == 0, running.said
    assert f"The parent (process {starter.pid}) is gone" in running.said


def test_a_run_that_was_started_alone_outlives_its_parent(launch, tmp_path):
    """nohup, or a shell that is closed."""
    parent, rank = orphaned(launch, tmp_path, "")
    try:
        count = len(steps(tmp_path))
        time.sleep(2.5)
        assert alive(rank) and len(steps(tmp_path)) > count, parent.said
        os.kill(rank, signal.SIGTERM)
        wait_for(lambda: not alive(rank), parent, seconds=20)
    finally:
        if alive(rank):
            os.kill(rank, signal.SIGKILL)
    assert "is gone" not in parent.said and "stopped, the same command goes on from here" in parent.said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "-1"),
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "1e3"),
        ("WORLD_SIZE", "\N{ARABIC-INDIC DIGIT TWO}"),
        ("WORLD_SIZE", "9" * 5000),
        ("LOCAL_RANK", ""),
        ("LOCAL_RANK", "x"),
        ("LOCAL_RANK", "1"),
        ("RANK", "0.5"),
        ("RANK", "3"),
    ],
)
def test_an_environment_that_torchrun_does_not_make(name, value, reca_fast, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    sentence = reca_fast("train", *arguments(tmp_path / "run")).sentence
    assert f"The environment variable {name} is" in sentence and "torchrun" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("port", ["", "x", "70000", None])
def test_a_port_that_is_none(port, reca_fast, arguments, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert "torchrun" in reca_fast("train", *arguments(tmp_path)).sentence


def test_a_port_that_others_hold(reca_fast, arguments, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        where = {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.getsockname()[1]}
        for name, value in where.items():
            monkeypatch.setenv(name, str(value))
        sentence = reca_fast("train", *arguments(tmp_path)).sentence
        assert "WORLD_SIZE is 2, but " in sentence and "start processes with torchrun" in sentence
