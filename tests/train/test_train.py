"""The training run: what it refuses, what it reports, the compiled step."""

import errno
import math
import os

import pytest
import torch
from torch import nn

from reca_fast.config import RunConfig
from reca_fast.errors import UserError
from reca_fast.train.determinism import make_deterministic
from reca_fast.train.distributed import Processes
from reca_fast.train.run import unwritable_folder_is_a_user_error
from reca_fast.train.telemetry import Telemetry


@pytest.fixture(scope="module")
def shown(train, tmp_path_factory):
    """(run folder, metrics, output) of a run with everything that can be looked at."""
    out = tmp_path_factory.mktemp("shown") / "run"
    grids = ["--sample_every", "4", "--sample_count", "2", "--sampling.steps", "3"]
    slow = "import time\nfrom reca_fast.evaluation import grids\ndraw = grids.draw_grid\n"
    slow += "grids.draw_grid = lambda *args: (time.sleep(3), draw(*args))\n"
    metrics = train(out, "--profile", "--steps", "5", *grids, before=slow)
    return out, metrics, (out / "said.txt").read_text()


def test_the_progress_line(shown):
    weights, first, *_ = shown[2].splitlines()
    assert weights.startswith("weights: ") and weights.endswith("ema.safetensors")
    for word in ("step 1/5", "loss ", " images/s", " tokens/s", " GB", "MFU n/a", "ETA "):
        assert word in first


def test_metrics_are_lines_of_json(shown):
    out, metrics, _ = shown
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5]
    for line in metrics:
        assert line["loss"] == line["loss_reca"] > 0 and line["grad_norm"] > 0
        assert line["images_per_s"] > 0 and line["tokens_per_s"] > 0 and line["memory_gb"] > 0
        assert line["mfu"] is None  # nobody knows the peak of a CPU
    assert [line["lr"] for line in metrics] == [0, 1e-4, 1e-4, 1e-4, 1e-4]
    assert (out / "loss.png").stat().st_size > 0


def test_tensorboard_has_the_same_numbers(shown):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, metrics, _ = shown
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {"loss", "loss_reca", "grad_norm", "lr", "images_per_s", "tokens_per_s"} <= set(events.Tags()["scalars"])
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(line["step"], pytest.approx(line["loss"])) for line in metrics]


def test_a_bare_profile_flag_writes_a_trace(shown):
    (trace,) = (shown[0] / "profile").glob("*.json")
    assert "ProfilerStep#2" in trace.read_text()  # counted from 0: the third step
    assert "profile/" in shown[2].splitlines()[-1]
    assert "USDT" not in shown[2] and "CPUAllocator" not in shown[2]


def test_a_run_too_short_for_a_trace_writes_none(tmp_path):
    config = RunConfig(out=str(tmp_path), steps=4, profile=True)
    telemetry = quiet_telemetry(config)
    with telemetry.profiler() as profiler:
        for _ in range(4):
            profiler.step()
    assert not telemetry.traced and not (tmp_path / "profile").exists()


def quiet_telemetry(config):
    processes = Processes()
    processes.join("cpu")
    return Telemetry(config, processes)


def test_grids_do_not_count_in_the_rates(shown):
    assert shown[1][4]["seconds"] < 3  # the grid after step 4 took longer


def test_the_grid_has_originals_above_reconstructions(shown):
    from PIL import Image

    with Image.open(shown[0] / "samples" / "step-0000004.png") as sheet:
        assert sheet.height > 2 * 16 and sheet.width > 2 * 16
    assert len(list((shown[0] / "samples").iterdir())) == 1


# The real compiler needs a C++ compiler and minutes; this one traces and differentiates the same graphs.
TRACED = """
import functools, importlib
assembling = importlib.import_module("reca_fast.train.assemble")
assembling.apply_levers = functools.partial(assembling.apply_levers, compiler="aot_eager")
"""


def test_compiled_blocks_train_the_same_and_compile_once(train, tmp_path):
    """Pictures of 24 shapes: every batch has other lengths, none has a graph of its own."""
    options = ["--steps", "8", "--save_every", "0", "--optim.lr", "1e-3"]
    compiled = train(tmp_path / "compiled", *options, "--memory.compile", "true", before=TRACED)
    eager = train(tmp_path / "eager", *options)
    for line, other in zip(compiled, eager, strict=True):
        assert math.isclose(line["loss"], other["loss"], rel_tol=1e-5)
        assert math.isclose(line["grad_norm"], other["grad_norm"], rel_tol=1e-5)
    assert [line["recompiles"] for line in compiled] == [0] * 8
    assert len({line["tokens"] for line in compiled}) > 4


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.weight


def test_deterministic_reaches_torch_and_cublas(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        make_deterministic()
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_a_deterministic_run(train, tmp_path):
    """Every operation of a joint step with recomputation has a deterministic algorithm, or this would raise."""
    options = "--model.freeze_und false --loss.i2t 1 --data.tasks.i2t 0.5 --steps 2 --memory.recompute blocks"
    told = "import torch\nswitch = torch.use_deterministic_algorithms\n"
    told += "torch.use_deterministic_algorithms = lambda on: (print('deterministic', on), switch(on))\n"
    metrics = train(tmp_path, *options.split(), "--deterministic", "true", before=told)
    assert len(metrics) == 2 and "deterministic True" in (tmp_path / "said.txt").read_text()


def test_graphs_are_counted():
    from reca_fast.memory import compile_blocks, compiled_graphs

    blocks = [Scale(), Scale()]
    compile_blocks(blocks, compiler="eager")
    before = compiled_graphs()
    for rows in (4, 5, 6):
        for block in blocks:
            block(torch.randn(rows, 3))
    assert compiled_graphs() - before == 1  # one for both blocks and all lengths
    blocks[0](torch.randn(2, 4, 3))
    assert compiled_graphs() - before == 2


@pytest.mark.parametrize(
    ("path", "number", "sentence"),
    [
        ("run/metrics.jsonl", errno.EACCES, "The run folder cannot be written"),
        ("run/metrics.jsonl", errno.ENOENT, "The run folder cannot be written"),
        (None, errno.ENOSPC, "The run folder cannot be written"),
        ("data/a.tar", errno.EACCES, r"data/a\.tar cannot be read: Permission denied\.$"),
    ],
)
def test_reading_errors_are_not_called_writing_errors(path, number, sentence, tmp_path) -> None:
    named = None if path is None else str(tmp_path / path)
    with pytest.raises(UserError, match=sentence), unwritable_folder_is_a_user_error(tmp_path / "run"):
        raise OSError(number, os.strerror(number), named)
    with pytest.raises(FileNotFoundError), unwritable_folder_is_a_user_error(tmp_path / "run"):
        raise FileNotFoundError(errno.ENOENT, "gone", str(tmp_path / "data" / "a.tar"))
