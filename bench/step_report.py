"""What the rounds of `bench/step.py` come to: medians, ratios of like with like, a table and a picture."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.ways import Way

Round = dict[str, dict[str, Any]]
"""Name of a way -> its figures (see `bench.step_measure.measure`)."""
BASELINES = ("authors", "authors fused", "grouped")


def summarise(rounds: list[Round]) -> dict[str, dict[str, Any]]:
    """Medians over the rounds of each way's figures; peak memory above the weights besides."""
    summary: dict[str, dict[str, Any]] = {}
    for name, first in rounds[0].items():
        each = [r[name] for r in rounds]
        summary[name] = {key: median(median(r[key]) for r in each) for key in ("seconds", "wall_s", "share")}
        summary[name] |= {key: first[key] for key in ("loss", "flop", "peak_bytes", "host_bytes", "by_category")}
        summary[name]["above_weights_bytes"] = first["peak_bytes"] - first["weights_bytes"]
    return summary


def ratios(rounds: list[Round], ways: Mapping[str, Way]) -> dict[str, dict[str, float]]:
    """How many times faster than each baseline every other way is, recomputation against recomputation and none against
    none. Ratios are formed inside a round: "baseline / way" -> median, least and most of them.
    """
    found: dict[str, dict[str, float]] = {}
    for baseline in BASELINES:
        for name in rounds[0]:
            other = f"{baseline}, recomputed" if ways[name].recomputes else baseline
            if other in rounds[0] and ways[name].kind == "ours":
                each = [median(r[other]["seconds"]) / median(r[name]["seconds"]) for r in rounds]
                found[f"{other} / {name}"] = {"median": median(each), "least": min(each), "most": max(each)}
    return found


def show(
    console: Console,
    summary: dict[str, dict[str, Any]],
    pairs: dict[str, dict[str, float]],
    title: str,
    ways: Mapping[str, Way],
) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("way", no_wrap=True)
    compared = [name for name in BASELINES if name in ways]
    columns = ("s", "peak MiB", "on the host", "TFLOP", "of the machine's rate", "loss")
    for column in (*columns, *(f"{baseline} /" for baseline in compared)):
        table.add_column(column, justify="right")
    for number, (name, s) in enumerate(summary.items()):
        behind = [other for other in list(summary)[number + 1 :] if ways[other].recomputes]
        cells = [f"{s['seconds']:.3g}", f"{s['peak_bytes'] / 2**20:.0f}"]
        cells += ["-" if not s["host_bytes"] else f"{s['host_bytes'] / 2**20:.0f}"]
        cells += [f"{s['flop'] / 1e12:.3f}", f"{s['share']:.0%}", f"{s['loss']:.5f}"]
        for baseline in compared:
            pair = pairs.get(f"{baseline}, recomputed / {name}" if ways[name].recomputes else f"{baseline} / {name}")
            cells.append("-" if pair is None else f"{pair['median']:.2f} ({pair['least']:.2f}-{pair['most']:.2f})")
        table.add_row(name, *cells, end_section=not ways[name].recomputes and len(behind) == len(summary) - number - 1)
    console.print(table)


def draw(summary: dict[str, dict[str, Any]], title: str, path: Path, ways: Mapping[str, Way]) -> None:
    """Two bars for each way, seconds and peak memory; those that recompute are hatched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.5 + 0.35 * len(summary)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = {"authors": "tab:red", "grouped": "tab:orange", "ours": "tab:green"}
    names = list(summary)[::-1]
    style = {
        "color": [colours[ways[name].kind] for name in names],
        "hatch": ["//" if ways[name].recomputes else "" for name in names],
        "edgecolor": "white",
    }
    left.barh(names, [summary[name]["seconds"] for name in names], **style)
    left.set_xlabel("seconds a step")
    right.barh(names, [summary[name]["peak_bytes"] / 2**20 for name in names], **style)
    right.set_xlabel("peak memory, MiB (hatched: recomputed)")
    figure.suptitle(f"{title}: lower is better")
    figure.savefig(path, dpi=130)
