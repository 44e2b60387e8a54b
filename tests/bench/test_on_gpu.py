"""bench/on_gpu.py without a GPU: every stage rehearsed at tiny sizes, and a parent that loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from bench import on_gpu
from bench.environment import ROOT
from bench.gpu_stages import NAMES, STAGES, Stage, machine
from bench.gpu_stages.bagel import predicted_memory
from bench.gpu_stages.report import Report

pytestmark = pytest.mark.slow

KEYS = ["stage", "name", "value", "unit", "expected", "ok", "seconds", "error"]
SCRIPT = str(ROOT / "bench" / "on_gpu.py")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("one_thread")
def test_a_stage_runs_to_its_end_without_a_gpu(name: str) -> None:
    """So that none can fail for a reason that has nothing to do with a GPU."""
    lines: list[dict] = []
    import_module(f"bench.gpu_stages.{name}").hand_in(Report(name, torch.device("cpu"), lines.append))
    assert lines and all(list(line) == KEYS for line in lines)
    assert not [line for line in lines if not line["ok"]]
    json.dumps(lines, allow_nan=False)


def test_a_failure_is_a_line_and_the_stage_goes_on() -> None:
    lines: list[dict] = []
    report = Report("smoke", torch.device("cpu"), lines.append)
    assert not report.attempt("broken", lambda: 1 / 0)
    report.at_most("error", float("nan"), 0.1)
    assert report.attempt("whole", report.at_most, "error", 0.05, 0.1)
    assert [line["ok"] for line in lines] == [False, False, True]
    assert lines[0]["error"] == "ZeroDivisionError: division by zero" and lines[2]["expected"] == "<= 0.1"


def test_a_stage_without_time_says_what_it_leaves_out() -> None:
    lines: list[dict] = []
    Report("smoke", torch.device("cpu"), lines.append, seconds=0).attempt("late", pytest.fail)
    assert "left out" in lines[0]["error"] and lines[0]["ok"] is None  # neither right nor wrong


def test_predicted_memory_of_the_real_model() -> None:
    """16 bytes per trained weight, 2 per frozen one; all 28 layers with recomputation fit 141 GB, 80 GB hold half."""
    whole, half = predicted_memory(28, 8, recompute=True), predicted_memory(14, 8, recompute=True)
    assert whole.gradients == 4 * 6_539_861_056 and whole.moments == 2 * whole.gradients
    assert 118e9 < whole.peak(True) < 141e9 and half.peak(True) < 80e9
    plain = predicted_memory(2, 8, recompute=False)
    assert plain.kept == pytest.approx(2 * plain.layer, rel=0.1) and plain.peak(False) > plain.weights + plain.moments


def test_a_lost_gpu_ends_the_stage_and_another_error_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal address every later call fails alike; after running out of memory none does."""
    lines: list[dict] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(size))
    report = Report("smoke", torch.device("cuda"), lines.append)
    assert not report.attempt("too large", lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit, match="the GPU context is lost"):
        report.attempt("wild", lost)
    assert [line["name"] for line in lines] == ["too large", "wild"]


# The parent


class Scripted(on_gpu.Session):
    """Stages that are a few lines of Python each."""

    scripts: dict[str, str]

    def command(self, stage: Stage) -> list[str]:
        return ["-c", "import sys, json\nseconds = float(sys.stdin.readline())\n" + self.scripts[stage.name]]


def run_scripts(tmp_path: Path, scripts: dict[str, str], seconds: float = 60, cap: float = 30) -> list[dict]:
    stages = [Stage(name, "", cap, False) for name in scripts]
    session = Scripted(stages, "cpu", seconds, tmp_path / "out.jsonl", jobs=1, target=90)
    session.scripts = scripts
    session.work()
    session.close()
    return read(tmp_path / "out.jsonl")


LINE = "print(json.dumps(dict(stage='x', name='figure', value=1.0, unit='', expected=None, ok=True, "
LINE += "seconds=0.1, error=None)), flush=True)\n"


def test_a_stage_that_dies_leaves_its_lines_and_one_more(tmp_path: Path) -> None:
    scripts = {"dies": f"{LINE}import os\nprint('oh no', file=sys.stderr, flush=True)\nos.abort()", "next": LINE}
    lines = run_scripts(tmp_path, scripts)
    assert [line["ok"] for line in lines] == [True, False, True]
    assert lines[1]["stage"] == "dies" and "SIGABRT" in lines[1]["error"] and "oh no" in lines[1]["error"]


def test_a_stage_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "GRACE", 0.5)
    monkeypatch.setattr(on_gpu, "LEAST", 0.1)
    pid = tmp_path / "pid"
    hangs = "import subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\n"
    hangs += f"open({str(pid)!r}, 'w').write(str(child.pid))\ntime.sleep(600)"
    lines = run_scripts(tmp_path, {"hangs": LINE + hangs, "next": LINE}, cap=4)
    assert [line["ok"] for line in lines] == [True, False, True] and "ended at its limit" in lines[1]["error"]
    grandchild = int(pid.read_text())
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


def test_a_stage_cut_by_the_run_s_own_budget_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "GRACE", 0.5)
    monkeypatch.setattr(on_gpu, "LEAST", 0.1)
    lines = run_scripts(tmp_path, {"long": LINE + "import time\ntime.sleep(600)"}, seconds=5, cap=30)
    assert [line["ok"] for line in lines] == [True, None] and "--seconds" in lines[1]["error"]


def test_the_budget_goes_to_the_first(tmp_path: Path) -> None:
    """Half of what is left to each, all of it to the last; none begins with next to nothing."""
    told = LINE.replace("1.0", "seconds")
    lines = run_scripts(tmp_path, {"a": told, "b": told}, seconds=43)
    assert [line["value"] for line in lines[:2]] == pytest.approx([20, 40], abs=0.5)
    lines = run_scripts(tmp_path, {"c": LINE}, seconds=5)
    assert lines[-1]["stage"] == "c" and "not begun" in lines[-1]["error"]


def test_sigterm_prints_the_table_and_keeps_the_lines(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    command = [sys.executable, SCRIPT, "--device", "cpu", "--only", "environment,smoke,ceilings", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.exists() and out.read_text().count("\n") > 3):
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM, errors
    lines = read(out)
    assert all(list(line) == KEYS for line in lines)
    assert lines[0]["name"] == "machine" and lines[0]["value"]["packages"]["torch"]
    assert "as expected" in said and "not begun: the run was asked to stop" in said and str(out) in said
    assert children and not psutil.wait_procs(children, timeout=5)[1]


def test_a_run_appends_and_its_exit_code_tells(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"earlier": true}\n')
    command = [sys.executable, SCRIPT, "--device", "cpu", "--only", "ceilings", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = read(out)
    assert lines[0] == {"earlier": True} and lines[1]["name"] == "machine"
    assert {line["stage"] for line in lines[2:]} == {"ceilings"}


def test_a_full_disk_costs_no_figure(tmp_path: Path) -> None:
    """It is said once, and the table still comes."""
    out = tmp_path / "out.jsonl"
    out.symlink_to("/dev/full")
    command = [sys.executable, SCRIPT, "--device", "cpu", "--only", "ceilings", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"on_gpu: --out {out} cannot be written (No space left on device).\n"
    assert "as expected" in done.stdout and f"not all written: {out}" in done.stdout


def test_the_parent_never_imports_torch() -> None:
    """Nor anything that could touch a GPU."""
    code = "import sys, bench.on_gpu; print(sorted({'torch', 'triton', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "smoke,speed"], "there is no stage 'speed'; there are environment, smoke"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--device", "cuda"], "neither nvidia-smi nor torch finds a GPU here"),
        (["--device", "cpu", "--out", "/dev/null/x"], "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence(arguments: list[str], sentence: str) -> None:
    environment = {**os.environ, "PATH": "/nowhere"}  # where no nvidia-smi is
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and sentence in done.stderr.splitlines()[-1]


def test_kernels_of_another_checkout_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install of another one would lend its kernels in silence."""
    assert machine.why_not_importable() is None
    spec = SimpleNamespace(origin="/elsewhere/kernels/ops/__init__.py")
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: spec)
    assert "would come from /elsewhere/kernels/ops" in str(machine.why_not_importable())
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: spec if name == "torch" else None)
    sentence = str(machine.why_not_importable())
    assert "cannot be imported" in sentence and "ln -sfn ../kernels/ops" in sentence


def test_the_list_names_every_stage() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--list"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [stage.name for stage in STAGES]
