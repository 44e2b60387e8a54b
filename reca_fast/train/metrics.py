"""metrics.jsonl, a line of JSON per logged step: cut when a run goes on from an earlier step, drawn at its end."""

import json
import math
import os
from pathlib import Path
from typing import Any


def cut_after(path: Path, step: int) -> list[int]:
    """Leave in a file of metrics the good lines up to `step`. Later ones belong to work that was lost: the run goes on
    from a checkpoint before them.

    Returns:
        The numbers, from 1, of the lines that are left out because they are cut short or something else than metrics.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    # A line that was cut short lacks its closing bracket; a whole one may lack nothing but the end of the line.
    rows = [_row(line) for line in lines]
    good = [
        line.rstrip() + b"\n" for line, row in zip(lines, rows, strict=True) if row is not None and row["step"] <= step
    ]
    if good != lines:
        partial = path.with_name(f".{path.name}.partial")  # replaced in one go: a kill in between loses nothing
        partial.write_bytes(b"".join(good))
        os.replace(partial, path)
    return [number for number, row in enumerate(rows, 1) if row is None]


def _row(line: bytes | str) -> dict[str, Any] | None:
    """A line of metrics, or None when it is something else."""
    try:
        row = json.loads(line)
        loss = 0.0 if row["loss"] is None else row["loss"]
        return row if type(row["step"]) is int and math.isfinite(row["step"] + loss) else None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


def draw_curve(metrics: Path, path: Path) -> None:
    """Loss over steps, raw and smoothed, as a PNG. Skipped steps, whose loss is null, have no point in it."""
    from matplotlib.figure import Figure

    rows = [row for line in metrics.read_bytes().splitlines() if (row := _row(line)) and row["loss"] is not None]
    if not rows:
        return
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    smooth, value = [], losses[0]
    for number, loss in enumerate(losses):
        value += (loss - value) / min(number + 1, 20)
        smooth.append(value)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#9bb7d4", linewidth=0.8, label="per step")
    axes.plot(steps, smooth, color="#1f4e79", linewidth=1.8, label="mean of about 20 steps")
    axes.set(xlabel="step", ylabel="loss", title="RECA training loss")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
