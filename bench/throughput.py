"""Every operation of `reca_fast.kernels` against whatever else a user would pick.

    python bench/throughput.py                        # all operations, under three minutes on two cores, no GPU needed
    python bench/throughput.py --op qk_norm_rope --gpu b200
    python bench/throughput.py --compare HEAD~3       # this tree against a commit, in turns

Before any figure, each implementation must agree with the authors' sequence in outputs and gradients. Then:
without a GPU, what runs on a CPU is timed there, every implementation's memory traffic is counted (Triton kernels in
the interpreter), the kernels are compiled for the GPU given by --gpu, and a time on it is PREDICTED from the roofline;
on a GPU, everything is timed with cold caches. Rows are appended to bench/results/throughput.jsonl, the picture goes
beside it.
"""

import argparse
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if importlib.util.find_spec("torch") is None:  # `python` is not the one that `make demo` installed into
    made = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    if not made.exists() or Path(sys.prefix) == made.parents[1]:
        sys.exit("throughput: torch is not installed here; `make demo` installs everything into .venv.")
    os.execv(made, [str(made), *sys.argv])

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.environment import ROOT, environment
from bench.gpus import GPUS, Gpu, measured_peaks, predicted_seconds
from bench.ops import NAMES, load
from bench.ops.case import Inputs, OpBench, Step
from bench.timing import interleaved
from bench.traffic import counting
from reca_fast.kernels.backend import INSTALLED, kernels

RESULTS = ROOT / "bench" / "results"
STEP = "step"  # not an operation: the whole training step
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 4e-2}
"""Largest difference from the authors' sequence, as a share of each result's root mean square."""

OURS = ("eager", "reference", "ours")  # what must run everywhere; a peer may not

Row = dict[str, Any]


def under(mode: str, step: Step) -> Step:
    """`step` with the kernels setting `mode` in force."""

    def run(inputs: Inputs) -> list[Tensor]:
        with kernels(mode):
            return step(inputs)

    return run


def providers(bench: OpBench, gpu: bool) -> dict[str, Step]:
    """Name -> forward and backward; "ours" is the Triton kernels, "reference" our plain torch."""
    ways = {"eager": bench.eager, "reference": under("reference", bench.ours)}
    if INSTALLED:
        ways["ours"] = under("triton", bench.ours)
    ways |= bench.peers
    if gpu:
        ways["compiled"] = torch.compile(bench.eager)
    return ways


def fresh(bench: OpBench, shape: str, dtype: torch.dtype, device: torch.device) -> Inputs:
    return bench.inputs(bench.shapes[shape], dtype, device, torch.Generator(device).manual_seed(0))


def disagreement(got: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error over all results, each relative to its own size (root mean square)."""
    worst = 0.0
    for ours, theirs in zip(got, expected, strict=True):
        size = theirs.double().square().mean().sqrt().clamp(min=1e-12)
        error = (ours.double() - theirs.double()).square().mean().sqrt() / size
        worst = max(worst, error.item() if torch.isfinite(error) else float("inf"))
    return worst


def count(bench: OpBench, step: Step, dtype: torch.dtype) -> Row:
    """Traffic of one implementation at the small shape, as multiples of the minimum."""
    inputs = fresh(bench, "small", dtype, torch.device("cpu"))
    with counting() as traffic:
        step(inputs)
    least = bench.minimum(bench.shapes["small"], dtype)
    return {
        "launches": traffic.launches,
        "matmuls": traffic.matmuls,
        "bytes": traffic.bytes,
        "bytes_over_minimum": traffic.bytes / least.bytes,
        "unique_over_minimum": traffic.unique_bytes / least.bytes,
        "flops_over_minimum": traffic.flops / least.flops if least.flops else None,
    }


def count_narrow(bench: OpBench, step: Step, ours: bool) -> Row:
    """`count` in bf16; in fp16 for a peer that computes in bf16 without upcasting, which the interpreter refuses."""
    try:
        return count(bench, step, torch.bfloat16)
    except Exception:
        if ours:
            raise
        return count(bench, step, torch.float16)


def compiled(bench: OpBench, target: int) -> list[Row]:
    """What the assembler made of each kernel of `bench` on sm_`target`."""
    from bench.aot import compiling, read

    with compiling(target) as hits:
        bench.compile()
    seen: dict[int, Row] = {}
    for name, kernel in hits:
        seen.setdefault(id(kernel), read(name, kernel, target).row())
    return list(seen.values())


def measure_without_gpu(bench: OpBench, gpu: Gpu) -> Iterator[Row]:
    """One row per implementation: gate, CPU time, traffic, predicted time at the real shape."""
    cpu, expected, ways, timed = torch.device("cpu"), None, {}, {}
    for name, step in providers(bench, gpu=False).items():
        row: Row = {"op": bench.name, "provider": name, "shape": "small"}
        try:
            # bf16 on this CPU is emulated and every implementation rounds elsewhere: agreement is checked in fp32.
            with counting():
                got = step(fresh(bench, "small", torch.float32, cpu))
            expected = got if expected is None else expected
            row["error"] = disagreement(got, expected)
            row["gate"] = row["error"] <= TOLERANCE[torch.float32]
            if row["gate"]:
                row |= count_narrow(bench, step, ours=name in OURS)
        except Exception as error:  # a peer may need a GPU, in any way it likes
            if name in OURS:
                raise
            row |= {"gate": None, "skipped": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
        ways[name] = row
        if name in ("eager", "reference"):
            inputs = fresh(bench, "cpu" if "cpu" in bench.shapes else "small", torch.float32, cpu)
            timed[name] = lambda step=step, inputs=inputs: step(inputs)
    for name, timing in interleaved(timed, cpu).items():
        ways[name]["cpu_ms"] = asdict(timing)
    least = bench.minimum(bench.shapes["real"], torch.bfloat16)
    for row in ways.values():
        if "bytes_over_minimum" in row:
            flops = (row["flops_over_minimum"] or 0) * least.flops
            seconds = predicted_seconds(gpu, row["unique_over_minimum"] * least.bytes, flops, row["launches"])
            real = {"real_bytes": row["unique_over_minimum"] * least.bytes, "real_minimum": least.bytes}
            row |= {"gpu": gpu.name, "predicted_ms": seconds * 1e3, **real}
        yield row


def measure_on_gpu(bench: OpBench, gpu: Gpu, device: torch.device) -> Iterator[Row]:
    """One row per implementation: gate, GPU time with cold caches, share of the measured peak, peak memory."""
    dtype = torch.bfloat16
    ways, timed, expected = {}, {}, None
    inputs = fresh(bench, "real", dtype, device)
    for name, step in providers(bench, gpu=True).items():
        row: Row = {"op": bench.name, "provider": name, "shape": "real", "gpu": gpu.name}
        try:
            got = step(inputs)
            expected = got if expected is None else expected
            row["error"] = disagreement(got, expected)
            row["gate"] = row["error"] <= TOLERANCE[dtype]
            del got
            if row["gate"]:
                timed[name] = lambda step=step: step(inputs)
        except Exception as error:
            if name in OURS:
                raise
            row |= {"gate": None, "skipped": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
        ways[name] = row
    least = bench.minimum(bench.shapes["real"], dtype)
    bound = predicted_seconds(gpu, least.bytes, least.flops, 0)
    for name, timing in interleaved(timed, device).items():
        ways[name] |= {"gpu_ms": asdict(timing), "share_of_peak": bound * 1e3 / timing.p50}
        ways[name] |= {"real_bytes": least.bytes, "real_minimum": least.bytes}
    yield from ways.values()


def show(console: Console, bench: OpBench, rows: list[Row], kernels_compiled: list[Row], gpu: Gpu) -> None:
    measured = any("gpu_ms" in row for row in rows)
    base = rows[0]
    table = Table(title=f"{bench.name}: {bench.about}", title_justify="left", title_style="bold")
    columns = ["implementation", "agrees"]
    columns += ["ms", "20-80 %", "x eager", "share of peak", "peak MB"] if measured else []
    columns += [] if measured else ["launches", "bytes / minimum", "past a cache"]
    columns += [] if measured else [f"predicted ms, {gpu.name}", "CPU ms (measured)"]
    for column in columns:
        table.add_column(column, justify="left" if column == "implementation" else "right")
    for row in rows:
        if row.get("skipped"):
            continue
        cells = [row["provider"], "yes" if row["gate"] else f"[red]NO ({row['error']:.1e})[/red]"]
        if measured and "gpu_ms" in row:
            t = row["gpu_ms"]
            cells += [f"{t['p50']:.3f}", f"{t['p20']:.3f}-{t['p80']:.3f}", f"{base['gpu_ms']['p50'] / t['p50']:.2f}"]
            cells += [f"{row['share_of_peak']:.0%}", f"{t['peak_bytes'] / 1e6:.0f}"]
        elif "launches" in row:
            extra = f" + {row['matmuls']} mm" if row["matmuls"] else ""
            cells += [f"{row['launches']}{extra}", f"{row['bytes_over_minimum']:.2f}"]
            cells += [f"{row['unique_over_minimum']:.2f}", f"{row['predicted_ms']:.3f}"]
            cells.append(f"{row['cpu_ms']['p50']:.1f}" if "cpu_ms" in row else "-")
        table.add_row(*cells)
    console.print(table)
    for row in rows:
        if row.get("skipped"):
            console.print(f"{row['provider']} cannot run here: {row['skipped']}", style="dim", markup=False)
    if bench.goal:
        console.print(f"goal: {bench.goal}", style="dim")
    for line in resources(kernels_compiled):
        console.print(f"  {line}", style="dim")
    console.print()


def resources(kernels_compiled: list[Row]) -> Iterator[str]:
    """One line per kernel: the worst of all its specialisations."""
    for name in dict.fromkeys(row["kernel"] for row in kernels_compiled):
        these = [row for row in kernels_compiled if row["kernel"] == name]
        units = sorted({unit for row in these for unit in row["tensor_core"]})
        yield (
            f"sm_{these[0]['target']} {name}{f' ({len(these)} variants)' if these[1:] else ''}: "
            f"{max(row['registers'] for row in these)} registers, "
            f"{max(row['spill_bytes'] for row in these)} B spilled, "
            f"occupancy {min(row['occupancy'] for row in these):.0%}, "
            f"loads {min(max([*row['loads'], *row['async_copies']], default=0) for row in these)} bit, "
            f"stores {min(max(row['stores'], default=0) for row in these)} bit{''.join(f', {u}' for u in units)}"
        )


def draw(rows: list[Row], gpu: Gpu, path: Path) -> None:
    """Left: bytes over the minimum as bars (on a GPU: time). Right: the roofline, time against bytes that must move."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    bars, roof = figure.subplots(1, 2)
    ops = list(dict.fromkeys(row["op"] for row in rows))
    names = [name for name in dict.fromkeys(row["provider"] for row in rows) if name != "reference"]  # for CPUs
    measured = any("gpu_ms" in row for row in rows)
    width, most = 0.8 / len(names), 1.0
    for number, name in enumerate(names):
        own = [row for row in rows if row["provider"] == name and "real_bytes" in row]
        times = [row["gpu_ms"]["p50"] if measured else row["predicted_ms"] for row in own]
        heights = times if measured else [row["unique_over_minimum"] for row in own]
        bars.bar([ops.index(row["op"]) + number * width for row in own], heights, width, label=name)
        roof.scatter([row["real_bytes"] / 1e6 for row in own], times, label=name, s=28)
        most = max([most, *(row["real_bytes"] / 1e6 for row in own)])
    bars.set_xticks([i + 0.4 - width / 2 for i in range(len(ops))], ops, rotation=30, ha="right")
    bars.set_ylabel(f"ms on {gpu.name}" if measured else "bytes moved / minimum, counted past a cache")
    if not measured:
        bars.axhline(1, color="black", linewidth=0.8)
    reach = [most / 1e4, most * 2]
    roof.plot(reach, [x * 1e9 / gpu.bandwidth for x in reach], color="black", label=f"{gpu.name} memory")
    how = "measured" if measured else "PREDICTED, not measured"
    roof.set(xscale="log", yscale="log", xlabel="MB to move at the real shape", ylabel=f"ms ({how})")
    roof.set_title("off the line: limited by matrix products or by launching", fontsize=10)
    bars.set_yscale("log")
    bars.legend(frameon=False)
    roof.legend(frameon=False)
    figure.suptitle("reca_fast.kernels: lower is better")
    figure.savefig(path, dpi=130)


def rows_of(names: list[str], gpu: Gpu, device: torch.device, console: Console) -> list[Row]:
    """Measure and show the operations, one after another."""
    everything: list[Row] = []
    for name in names:
        bench = load(name)
        if device.type == "cuda":
            rows, resources = list(measure_on_gpu(bench, gpu, device)), []
        else:
            rows = list(measure_without_gpu(bench, gpu))
            resources = compiled(bench, gpu.target) if INSTALLED else []
        show(console, bench, rows, resources, gpu)
        rows[-1]["kernels"] = resources
        everything += rows
    return everything


def compare(args: argparse.Namespace, console: Console) -> int:
    """This tree and another commit, in turns, each in processes of their own."""
    archive = subprocess.run(["git", "archive", args.compare], cwd=ROOT, capture_output=True)
    if archive.returncode:
        print(f"throughput: {args.compare} is not a commit of this checkout; `git log` lists them.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        trees = {"this tree": ROOT, args.compare: Path(folder)}
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        # The folder kernels/ops is reca_fast.kernels in an installation; here a link does it.
        Path(folder, "reca_fast", "kernels").symlink_to(Path(folder, "kernels", "ops"), target_is_directory=True)
        figures: dict[str, dict[tuple[str, str], list[Row]]] = {label: {} for label in trees}
        for _ in range(2):
            for label, tree in trees.items():
                out = Path(folder, "rows.jsonl")
                out.unlink(missing_ok=True)
                code = [sys.executable, str(tree / "bench" / "throughput.py"), "--gpu", args.gpu, "--out", str(out)]
                code += ["--op", *(args.op or NAMES)]
                done = subprocess.run(code, capture_output=True, text=True)
                if done.returncode:
                    print(f"throughput: {label} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    return 1
                for row in map(json.loads, out.read_text().splitlines()):
                    figures[label].setdefault((row["op"], row["provider"]), []).append(row)
    table = Table(title=f"this tree / {args.compare} (below 1 is better)", title_justify="left")
    for column in ("operation", "implementation", "bytes", "launches", "time"):
        table.add_column(column)
    old, new = figures[args.compare], figures["this tree"]
    for key in new.keys() & old.keys():
        cells = []
        for read in (lambda r: r.get("bytes_over_minimum"), lambda r: r.get("launches"), _milliseconds):
            after, before = (min((read(r) for r in rows if read(r)), default=None) for rows in (new[key], old[key]))
            cells.append(f"{after / before:.3f}" if after and before else "-")
        table.add_row(*key, *cells)
    console.print(table)
    return 0


def _milliseconds(row: Row) -> float | None:
    timing = row.get("gpu_ms") or row.get("cpu_ms")
    return timing["p50"] if timing else None


def whole_step(console: Console) -> list[Row]:
    """One training step of a small BAGEL: ours against the stand-in for the authors' (bench/bagel_step.py)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "step.json")
        command = [sys.executable, str(ROOT / "bench" / "bagel_step.py"), "--variants", "generic", "fused", "ours"]
        subprocess.run([*command, "--rounds", "1", "--steps", "1", "--out", out], check=True, capture_output=True)
        summary = json.loads(out.read_text())["summary"]
    table = Table(title="step: forward and backward of a small BAGEL", title_justify="left", title_style="bold")
    for column in ("implementation", "CPU s (measured)", "peak MiB above the weights", "loss"):
        table.add_column(column, justify="left" if column == "implementation" else "right")
    labels = {"generic": "authors' layout", "fused": "authors' layout, fused attention", "ours": "ours"}
    rows = []
    for name, figures in summary.items():
        seconds, peak = figures["cpu_s"], figures["peak_above_weights_mib"]
        table.add_row(labels[name], f"{seconds:.2f}", f"{peak:.0f}", f"{figures['loss']:.5f}")
        rows.append({"op": "step", "provider": name, "cpu_ms": {"p50": seconds * 1e3}, "peak_bytes": peak * 2**20})
    console.print(table)
    console.print("one run each: `python bench/bagel_step.py` repeats and interleaves them", style="dim")
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--op", nargs="+", choices=[*NAMES, STEP], metavar="OP", help="operations (default: all; see --list)"
    )
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="GPU to compile and predict for without one")
    parser.add_argument("--compare", metavar="REV", help="measure this tree against a commit")
    parser.add_argument("--list", action="store_true", help="list the operations and their shapes, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.jsonl", help="rows are appended here")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 130)
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")  # ours pass it; a peer's business otherwise
    if args.list:
        for name in NAMES:
            bench = load(name)
            console.print(f"[bold]{name}[/bold]: {bench.about}\n  shapes {dict(bench.shapes)}")
        console.print(f"[bold]{STEP}[/bold]: one whole training step of a small BAGEL")
        return 0
    if args.compare:
        return compare(args, console)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = measured_peaks(device) if device.type == "cuda" else GPUS[args.gpu]
    if device.type == "cpu":
        console.print(
            f"No GPU here: times on {gpu.name} are predicted from counted traffic, and are lower bounds. "
            "What was measured is CPU time and says nothing about a GPU. Bytes are those that the kernels ask for; "
            "past a cache, each address counts once per kernel.\n"
        )
    rows = rows_of([name for name in args.op or NAMES if name != STEP], gpu, device, console)
    drawn = list(rows)
    if not args.op or STEP in args.op:
        rows += whole_step(console)
    here = environment()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        for row in rows:
            file.write(json.dumps({**row, "environment": here}) + "\n")
    draw(drawn, gpu, args.out.with_suffix(".png"))
    console.print(f"written: {args.out} and {args.out.with_suffix('.png').name}")
    wrong = [f"{row['op']} ({row['provider']})" for row in rows if row.get("gate") is False]
    if wrong:
        print(f"throughput: these disagree with the authors' sequence: {', '.join(wrong)}.", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
