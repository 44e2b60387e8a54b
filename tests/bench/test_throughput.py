"""bench/throughput.py: shapes from the command line, who is timed, what a newcomer reads."""

import json
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from rich.console import Console

pytest.importorskip("triton", reason="Triton is not installed")

from bench import measure, throughput
from bench.environment import ROOT
from bench.gpus import GPUS
from bench.measure import choose_shapes, measure_on_gpu, measure_without_gpu, providers
from bench.ops import NAMES, case_of
from bench.ops.attention import flex_forward
from bench.report import draw, show, summary
from bench.timing import interleaved
from reca_fast.kernels import varlen_attention
from reca_fast.kernels.common.interpreter import interpreting

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
QK = case_of("qk_norm_rope")


def test_sizes_go_where_they_belong() -> None:
    """Heads are the same in both shapes and change in both; of rows the interpreter needs few."""
    shapes = choose_shapes(QK, ["tokens=8192", "heads=16"])
    assert shapes.label == "tokens=8192 heads=16"
    assert shapes.timed == {**QK.shapes["real"], "tokens": 8192, "heads": 16}
    assert shapes.counted == {**QK.shapes["small"], "heads": 16}
    assert choose_shapes(QK, ["tokens=8"]).counted["tokens"] == 8


def test_shapes_by_name() -> None:
    case = case_of("fused_linear_cross_entropy")
    assert choose_shapes(case, []).timed is case.shapes["real"]
    codes = choose_shapes(case, ["codes"])
    assert codes.timed is case.shapes["codes"] and codes.counted["in_range"] == 1
    assert codes.counted["rows"] == case.shapes["small"]["rows"]


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_counts_at_interpretable_sizes(name: str) -> None:
    case = case_of(name)
    for shape in case.shapes:
        counted = choose_shapes(case, [shape]).counted
        assert all(counted[key] <= max(case.shapes["small"][key], 1) for key in counted)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shape", "tokens=5"], "name it with --op"),
        (["--op", "qk_norm_rope", "--shape", "huge"], "qk_norm_rope has no shape 'huge'; it has real, small"),
        (["--op", "qk_norm_rope", "--shape", "rows=5"], "no size 'rows'; it has tokens, heads, kv_heads, head_dim"),
        (["--op", "qk_norm_rope", "--shape", "heads=0"], "expected heads=N with a positive integer N"),
        (["--op", "rotary"], "invalid choice: 'rotary'"),
        (["--compare", "nowhere"], "nowhere is not a commit of this checkout"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence(arguments: list[str], sentence: str, run) -> None:
    code, _, error = run(*arguments)
    assert code == 2 and sentence in error.splitlines()[-1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command in this process: its exit code and what it printed."""

    def call(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["throughput.py", *map(str, arguments)])
        try:
            code = throughput.main()
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return code, *capsys.readouterr()

    return call


def test_a_run_without_a_gpu(tmp_path) -> None:
    """As a user starts it, from whatever folder."""
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(ROOT / "bench" / "throughput.py"), "--op", "flow_matching", "--out", str(out)]
    done = subprocess.run([*command, "--shape", "tokens=512"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "PREDICTED" in done.stdout and "how many times what ours needs" in done.stdout
    rows = {row["provider"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows["ours"]["shape"] == "tokens=512" and rows["ours"]["sizes"]["tokens"] == 512
    assert "cpu_ms" in rows["eager"] and "cpu_ms" not in rows["ours"]  # interpreted: its time would mean nothing
    assert rows["ours"]["environment"]["packages"]["triton"]
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_the_list_names_every_operation(run) -> None:
    code, said, _ = run("--list")
    assert not code and all(name in said for name in NAMES)


def test_attention_times_what_runs_and_says_what_does_not() -> None:
    case, shapes = small("attention")
    rows = {row["provider"]: row for row in measure_without_gpu(case, shapes, GPUS["h100"])}
    assert rows["ours"]["gate"] and rows["sdpa"]["gate"] and rows["ours"]["cpu_ms"]["p50"] > 0
    assert "needs an NVIDIA GPU" in rows["torch"]["skipped"]
    assert "flash" in rows["flash_attn"]["skipped"] and "CPU" in rows["flex_attention"]["skipped"]


def small(name: str):
    """The operation, and few of everything that its kernels have programs for."""
    case, few = case_of(name), {"tokens": 4, "heads": 4, "kv_heads": 2, "rows": 32, "queries": 8, "keys": 16}
    return case, choose_shapes(case, [f"{size}={n}" for size, n in few.items() if size in case.shapes["small"]])


@pytest.mark.parametrize(
    "name",
    ["qk_norm_rope", pytest.param("fused_linear_cross_entropy", marks=pytest.mark.exhaustive), "attention"],
)
def test_what_a_gpu_would_run(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement on a GPU, its table and its picture, with a CPU and interpreted kernels in the GPU's place."""
    monkeypatch.setattr(torch, "compile", lambda step: step)
    monkeypatch.setattr(measure, "interleaved", partial(interleaved, budget=0, least=1))
    (case, shapes), console = small(name), Console(width=150, record=True)
    with interpreting():
        rows = list(measure_on_gpu(case, shapes, GPUS["h100"], torch.device("cpu"), providers(case, gpu=True)))
    by = {row["provider"]: row for row in rows}
    assert all(by[provider]["gate"] for provider in ("eager", "ours", "torch.compile")), by
    assert by["ours"]["gpu_ms"]["p20"] <= by["ours"]["gpu_ms"]["p80"] and by["ours"]["share_of_peak"] > 0
    show(console, case, rows, [], GPUS["h100"])
    summary(console, rows)
    draw(rows, GPUS["h100"], tmp_path / "picture.png")
    assert "share of peak" in console.export_text() and (tmp_path / "picture.png").exists()


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """on_a_gpu(ways): the measurement on a GPU, of these implementations on the CPU's small shapes."""

    def replace(ways) -> None:
        monkeypatch.setattr(throughput, "pick_device", lambda: torch.device("cuda"))
        monkeypatch.setattr(throughput, "measured_peaks", lambda device: GPUS["h100"])
        monkeypatch.setattr(throughput, "providers", lambda case, gpu, compile_eager: ways(case, compile_eager))
        here = partial(measure_on_gpu, device=torch.device("cpu"), budget=0)
        small = lambda case, shapes, gpu, device, ways: here(case, choose_shapes(case, ["small"]), gpu, ways=ways)  # noqa: E731
        monkeypatch.setattr(throughput, "measure_on_gpu", small)

    return replace


def test_every_row_is_written_at_once_and_a_failure_is_one(tmp_path, run, on_a_gpu) -> None:
    out = tmp_path / "rows.jsonl"
    written: list[list[dict]] = []

    def look(inputs):
        written.append([json.loads(line) for line in out.read_text().splitlines()])
        return QK.eager(inputs)

    def broken(inputs):
        raise RuntimeError("an illegal instruction")

    on_a_gpu(lambda case, _: {"eager": case.eager, "ours": broken, "liger": broken, "look": look})
    code, said, error = run("--op", "qk_norm_rope", "adaln_modulate", "--out", out)
    assert code == 1 and "qk_norm_rope (ours: RuntimeError: an illegal instruction)" in error
    assert "ours failed: RuntimeError" in said and "liger cannot run here: RuntimeError" in said
    assert [row["provider"] for row in written[0]] == ["eager", "ours", "liger"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["op"] for row in rows} == {"qk_norm_rope", "adaln_modulate"} and len(rows) == 8
    assert "failed" in rows[1] and "skipped" in rows[2] and rows[3]["gpu_ms"]["p50"] > 0


def test_an_operation_that_cannot_begin_is_a_row_too(tmp_path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case, shapes, gpu):
        raise MemoryError("no room for the inputs") if case.name == "qk_norm_rope" else ValueError("another")
        yield

    monkeypatch.setattr(throughput, "measure_without_gpu", broken)
    out = tmp_path / "rows.jsonl"
    code, _, error = run("--op", "qk_norm_rope", "adaln_modulate", "--out", out)
    assert code == 1 and "MemoryError: no room for the inputs" in error and "another" in error
    assert len(out.read_text().splitlines()) == 2


def test_a_machine_with_a_gpu_times_no_step_on_its_cpu(tmp_path, run, on_a_gpu, monkeypatch) -> None:
    monkeypatch.setattr(throughput, "NAMES", ("adaln_modulate",))
    monkeypatch.setattr(throughput, "whole_step", lambda console: pytest.fail("a step on the CPU"))
    on_a_gpu(
        lambda case, compile_eager: {"eager": case.eager} | ({"torch.compile": case.eager} if compile_eager else {})
    )
    for option, wanted in (((), ["eager", "torch.compile"]), (("--no-compile",), ["eager"])):
        out = tmp_path / f"rows{len(wanted)}.jsonl"
        code, _, _ = run(*option, "--out", out)
        assert code == 0 and [json.loads(line)["provider"] for line in out.read_text().splitlines()] == wanted
    code, _, error = run("--op", "step", "--out", tmp_path / "none.jsonl")
    assert code == 2 and "bench/on_gpu.py --only layers" in error


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_called_as_it_should_be() -> None:
    """Forward only, which is what it can do on a CPU."""
    case, shapes = small("attention")
    *tensors, segments = case.inputs(shapes.counted, torch.float32, torch.device("cpu"), torch.Generator()).values()
    q, k, v = (x.detach() for x in tensors)
    expected = varlen_attention(q, k, v, segments, backend="sdpa")
    torch.testing.assert_close(flex_forward(q, k, v, segments), expected, rtol=1e-4, atol=1e-5)
