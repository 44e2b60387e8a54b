"""What bench/throughput.py prints and draws."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.gpus import Gpu
from bench.measure import Row
from bench.ops.case import Case

COLUMNS = {
    "agrees": "outputs and gradients equal the authors' up to rounding",
    "launches": "kernels started, forward and backward; mm: matrix products, which are library calls",
    "bytes / minimum": "memory traffic asked for, over what must move: every input once, every output once",
    "past a cache": "the same, each address once per kernel",
    "predicted ms": "a lower bound: bytes past a cache, products or launches, whichever takes longest",
    "CPU ms": "really measured, on this machine's CPU; says nothing about a GPU",
}


def legend(console: Console, gpu: Gpu) -> None:
    """Before the tables of a machine without a GPU: what was measured and what was not."""
    console.print(
        f"No GPU here. Times on {gpu.name} are PREDICTED from counted traffic; only CPU times are measured. "
        "eager is the authors' sequence of operations, reference our plain torch, ours our kernels.\n"
    )
    for name, meaning in COLUMNS.items():
        console.print(f"  [bold]{name}[/bold]  {meaning}")
    console.print()


def show(console: Console, case: Case, rows: list[Row], kernels_compiled: list[Row], gpu: Gpu) -> None:
    measured = any("gpu_ms" in row for row in rows)
    table = Table(title=f"{case.name} ({rows[0]['shape']}): {case.about}", title_justify="left", title_style="bold")
    columns = ["implementation", "agrees"]
    if measured:
        columns += ["ms", "20-80 %", "x eager", "share of peak", "peak MB"]
    else:
        columns += ["launches", "bytes / minimum", "past a cache", f"predicted ms, {gpu.name}", "CPU ms"]
    for column in columns:
        table.add_column(column, justify="left" if column == "implementation" else "right")
    for row in rows:
        if not row.keys() & {"skipped", "failed"}:
            agrees = "-" if row["gate"] is None else "yes" if row["gate"] else f"[red]NO ({row['error']:.1e})[/red]"
            cells = _measured(row, rows[0]) if measured else _counted(row)
            table.add_row(row["provider"], agrees, *cells)
    console.print(table)
    for row in rows:
        if row.get("skipped"):
            console.print(f"{row['provider']} cannot run here: {row['skipped']}", style="dim", markup=False)
        if row.get("failed"):
            console.print(f"{row['provider']} failed: {row['failed']}", style="red", markup=False)
    if case.goal:
        console.print(f"goal: {case.goal}", style="dim")
    for line in resources(kernels_compiled):
        console.print(f"  {line}", style="dim")
    console.print()


def _measured(row: Row, base: Row) -> list[str]:
    if "gpu_ms" not in row:
        return []
    t, eager = row["gpu_ms"], base.get("gpu_ms")
    times = f"{eager['p50'] / t['p50']:.2f}" if eager else "-"
    spread, share = f"{t['p20']:.3f}-{t['p80']:.3f}", f"{row['share_of_peak']:.0%}"
    peak = "-" if t["peak_bytes"] is None else f"{t['peak_bytes'] / 1e6:.0f}"
    return [f"{t['p50']:.3f}", spread, times, share, peak]


def _counted(row: Row) -> list[str]:
    cells = ["-"] * 4
    if "launches" in row:
        products = f" + {row['matmuls']} mm" if row["matmuls"] else ""
        cells = [f"{row['launches']}{products}", f"{row['bytes_over_minimum']:.2f}"]
        cells += [f"{row['unique_over_minimum']:.2f}", f"{row['predicted_ms']:.3f}"]
    return [*cells, f"{row['cpu_ms']['p50']:.1f}" if "cpu_ms" in row else "-"]


def summary(console: Console, rows: list[Row]) -> None:
    """One line per operation: the authors' sequence and the best of the others over ours, and why."""
    measured = any("gpu_ms" in row for row in rows)
    time = "time" if measured else "predicted time"
    table = Table(title="in short: how many times what ours needs", title_justify="left", title_style="bold")
    table.add_column("operation", no_wrap=True)
    columns = [f"eager {time}"] if measured else ["eager launches", "bytes", "FLOPs", time, "limited by", "ours by"]
    for column in [*columns, "best other", f"its {time}"]:
        left = column in ("limited by", "ours by", "best other")
        table.add_column(column, justify="left" if left else "right")
    for op in dict.fromkeys(row["op"] for row in rows):
        by = {row["provider"]: row for row in rows if row["op"] == op and _time(row)}
        if not {"eager", "ours"} <= by.keys():
            continue
        eager, ours = by["eager"], by["ours"]
        others = [row for name, row in by.items() if name not in ("eager", "ours", "reference")]
        best, cells = min(others, key=_time, default=None), [op]
        if not measured:
            for key in ("launches", "bytes_over_minimum", "flops_over_minimum"):
                cells.append(f"{eager[key] / ours[key]:.1f}" if eager[key] and ours[key] else "-")
        cells.append(f"{_time(eager) / _time(ours):.1f}")
        if not measured:
            cells += [eager["limited_by"], ours["limited_by"]]
        cells += [best["provider"], f"{_time(best) / _time(ours):.1f}"] if best else ["-", "-"]
        table.add_row(*cells)
    if table.row_count:
        console.print(table)
        console.print("docs/kernels.md says for each operation what has to move and where the rest comes from.\n")


def _time(row: Row) -> float:
    """Milliseconds on the GPU, measured or predicted; 0 where there are none."""
    return row["gpu_ms"]["p50"] if "gpu_ms" in row else row.get("predicted_ms", 0.0)


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
    rows = [row for row in rows if "real_bytes" in row]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    names = [name for name in dict.fromkeys(row["provider"] for row in rows) if name != "reference"]  # for CPUs
    measured = any("gpu_ms" in row for row in rows)
    width, most = 0.8 / len(names), 1.0
    for number, name in enumerate(names):
        own = [row for row in rows if row["provider"] == name]
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
