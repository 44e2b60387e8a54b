"""150 steps of a tiny BAGEL on photographs, with kernels and with plain torch: the same curve, how much faster.

In fp32 the two differ by rounding alone; the mean loss of a tenth of the run smooths what that grows into. In bf16 they
round at other places.
"""

import json
import tempfile
from pathlib import Path
from statistics import median

from reca_fast.cli import main as reca_fast
from reca_fast.models.bagel.tiny import VAE_FILE, write_tiny_checkpoint

from .photographs import source, write
from .report import Report

AGREEMENT = {"fp32": 0.01, "bf16": 0.03}
"""Largest difference of two curves, each averaged over tenths of the run, as a share of their value."""


def hand_in(report: Report) -> None:
    report.figure("pictures", source())
    steps = 3 if report.rehearsal else 150
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny_checkpoint(folder / "base", vae_file=VAE_FILE)
        write(folder / "pictures", 16 if report.rehearsal else 120, 64)
        for precision in AGREEMENT:
            curves: dict[str, list[dict]] = {}
            for kernels in ("auto", "reference"):
                report.attempt(f"{precision}, {kernels}", train, report, folder, precision, kernels, steps, curves)
            if len(curves) == 2:
                report.attempt(f"{precision}: agreement", agree, report, precision, curves)


def train(report: Report, folder: Path, precision: str, kernels: str, steps: int, curves: dict) -> None:
    out = folder / f"{precision}-{kernels}"
    text = f"--config tiny-bagel --model.path {folder / 'base'} --data.source {folder / 'pictures'} --out {out}"
    text += f" --device {report.device.type} --steps {steps} --optim.warmup_steps {steps // 5} --save_every 0"
    text += f" --sample_every 0 --model.precision {precision} --model.kernels {kernels} --data.prefetch 4"
    text += f" --data.tokens_per_pack {500 if report.rehearsal else 2560}"
    code = reca_fast(["train", *text.split()])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    title = f"{precision}, kernels {kernels}"
    report.equal(f"{title}: exit code", code, 0)
    curves[kernels] = lines
    late = lines[len(lines) // 2 :]
    report.figure(f"{title}: step", median(line["seconds"] for line in late) * 1e3, "ms")
    first, last = (sum(line["loss"] for line in part) / len(part) for part in (lines[:3], lines[-3:]))
    report.figure(f"{title}: last loss", last, expected=f"< {first:.4g}", ok=report.rehearsal or last < first)


def agree(report: Report, precision: str, curves: dict[str, list[dict]]) -> None:
    tenth = max(1, len(curves["auto"]) // 10)
    averaged = [
        [sum(line["loss"] for line in lines[n : n + tenth]) / tenth for n in range(0, len(lines) - tenth + 1, tenth)]
        for lines in curves.values()
    ]
    off = max(abs(a - b) / abs(b) for a, b in zip(*averaged, strict=True))
    report.at_most(f"{precision}: kernels against plain torch", off, AGREEMENT[precision], "of the loss")
