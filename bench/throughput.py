"""Every operation of `reca_fast.kernels` against whatever else a user would pick.

    python bench/throughput.py                        # all operations, under three minutes on two cores, no GPU needed
    python bench/throughput.py --op qk_norm_rope --gpu b200
    python bench/throughput.py --op qk_norm_rope --shape tokens=8192 heads=16
    python bench/throughput.py --compare HEAD~3       # this tree against a commit, in turns

Before any figure, each implementation must agree with the authors' sequence in outputs and gradients. Then:
without a GPU, what runs on a CPU is timed there, every implementation's memory traffic is counted (Triton kernels in
the interpreter), the kernels are compiled for the GPU given by --gpu, and a time on it is PREDICTED from the roofline;
on a GPU, everything is timed with cold caches. Every row is appended to bench/results/throughput.jsonl as soon as it is
measured, the picture goes beside it. What fails has a row that says so, and the exit code is 1.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if importlib.util.find_spec("torch") is None:  # `python` is not the one that `make demo` installed into
    made = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    if not made.exists() or Path(sys.prefix) == made.parents[1]:
        sys.exit("throughput: torch is not installed here; `make demo` installs everything into .venv.")
    os.execv(made, [str(made), *sys.argv])

import torch
from rich.console import Console
from rich.table import Table

from bench.compare_trees import compare
from bench.environment import ROOT, environment
from bench.gpus import GPUS, Gpu, measured_peaks
from bench.measure import Row, choose_shapes, compiled, failure, measure_on_gpu, measure_without_gpu, providers
from bench.ops import NAMES, case_of
from bench.report import draw, legend, show, summary
from reca_fast.kernels.common.optional_triton import INSTALLED

RESULTS = ROOT / "bench" / "results"
STEP = "step"  # not an operation: the whole training step


def rows_of(
    names: list[str],
    args: argparse.Namespace,
    gpu: Gpu,
    device: torch.device,
    console: Console,
    write: Callable[[Row], None],
) -> list[Row]:
    """Measure and show the operations, one after another; every row is written as soon as it is there."""
    everything: list[Row] = []
    for name in names:
        case = case_of(name)
        shapes = choose_shapes(case, args.shape)
        rows, resources = [], []
        try:
            if device.type == "cuda":
                ways = providers(case, gpu=True, compile_eager=args.compile)
                measured = measure_on_gpu(case, shapes, gpu, device, ways)
            else:
                measured = measure_without_gpu(case, shapes, gpu)
            for row in measured:
                rows.append(row)
                write(row)
            if device.type == "cpu" and INSTALLED and case.compile is not None:
                resources = compiled(case, gpu.target)
                write({"op": name, "provider": "compiler", "shape": shapes.label, "kernels": resources})
        except Exception as error:  # of one operation: inputs that do not fit, a compiler that gives up
            rows.append({"op": name, "provider": "ours", "shape": shapes.label, **failure("ours", error)})
            write(rows[-1])
        show(console, case, rows, resources, gpu)
        everything += rows
    return everything


def whole_step(console: Console) -> list[Row]:
    """One training step of a small BAGEL: ours against the stand-in for the authors' (bench/step.py)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "step.json")
        command = [sys.executable, str(ROOT / "bench" / "step.py"), "--ways", "authors", "authors fused", "ours"]
        command += ["--rounds", "1", "--steps", "2", "--device", "cpu", "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
        summary = json.loads(out.read_text())["summary"]
    table = Table(title="step: forward, backward and update of a small BAGEL", title_justify="left", title_style="bold")
    for column in ("implementation", "CPU s (measured)", "peak MiB above the weights", "loss"):
        table.add_column(column, justify="left" if column == "implementation" else "right")
    labels = {"authors": "authors' layout", "authors fused": "authors' layout, fused attention", "ours": "ours"}
    rows: list[Row] = []
    for name, figures in summary.items():
        seconds, peak = figures["seconds"], figures["above_weights_bytes"] / 2**20
        table.add_row(labels[name], f"{seconds:.2f}", f"{peak:.0f}", f"{figures['loss']:.5f}")
        rows.append({"op": STEP, "provider": name, "cpu_ms": {"p50": seconds * 1e3}, "peak_bytes": peak * 2**20})
    console.print(table)
    console.print("two steps each: `python bench/step.py` repeats and interleaves them\n", style="dim")
    return rows


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--op", nargs="+", choices=[*NAMES, STEP], metavar="OP", help="operations (default: all; see --list)"
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        default=[],
        metavar="SHAPE",
        help="with one --op: a shape's name (see --list), or key=value for sizes other than the real ones",
    )
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="GPU to compile and predict for without one")
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="leave torch.compile out, which takes longer to compile than all others together (on a GPU)",
    )
    parser.add_argument("--compare", metavar="REV", help="measure this tree against a commit")
    parser.add_argument("--list", action="store_true", help="list the operations and their shapes, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.jsonl", help="rows are appended here")
    args = parser.parse_args()
    if args.shape:
        if args.op is None or len(args.op) != 1 or args.op == [STEP]:
            parser.error("--shape: sizes belong to one operation; name it with --op")
        try:
            choose_shapes(case_of(args.op[0]), args.shape)
        except ValueError as error:
            parser.error(str(error))
    return args


def main() -> int:
    args = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 130)
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")  # ours pass it; a peer's business otherwise
    if args.list:
        for name in NAMES:
            case = case_of(name)
            console.print(f"[bold]{name}[/bold]: {case.about}")
            for shape, sizes in case.shapes.items():
                console.print(f"  {shape}: {' '.join(f'{key}={size}' for key, size in sizes.items())}")
        console.print(f"[bold]{STEP}[/bold]: one whole training step of a small BAGEL")
        return 0
    if args.compare:
        options = ["--gpu", args.gpu, *(["--shape", *args.shape] if args.shape else [])]
        return compare(args.compare, args.op or list(NAMES), options, console)
    torch.set_num_threads(1)
    device = pick_device()
    if device.type == "cuda" and STEP in (args.op or []):
        print("throughput: the step is timed on CPUs alone; on a GPU: bench/on_gpu.py --only layers.", file=sys.stderr)
        return 2
    gpu = measured_peaks(device) if device.type == "cuda" else GPUS[args.gpu]
    if device.type == "cpu":
        legend(console, gpu)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    here = environment()
    with args.out.open("a", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(json.dumps({**row, "environment": here}) + "\n")
            file.flush()

        rows = rows_of([name for name in args.op or NAMES if name != STEP], args, gpu, device, console, write)
        drawn = list(rows)
        if STEP in (args.op or [STEP] * (device.type == "cpu")):
            try:
                steps = whole_step(console)
            except subprocess.CalledProcessError as error:
                said = error.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
                steps = [{"op": STEP, "provider": "ours", "gate": None, "failed": said[-1]}]
            for row in steps:
                write(row)
            rows += steps
    summary(console, drawn)
    if any("real_bytes" in row for row in drawn):
        draw(drawn, gpu, args.out.with_suffix(".png"))
    console.print(f"written: {args.out} and {args.out.with_suffix('.png').name}")
    wrong = [f"{row['op']} ({row['provider']})" for row in rows if row.get("gate") is False]
    if wrong:
        print(f"throughput: these disagree with the authors' sequence: {', '.join(wrong)}.", file=sys.stderr)
    failed = [f"{row['op']} ({row['provider']}: {row['failed']})" for row in rows if "failed" in row]
    if failed:
        print(f"throughput: these failed: {'; '.join(failed)}.", file=sys.stderr)
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
