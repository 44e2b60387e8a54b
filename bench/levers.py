"""Does a run with a memory lever pulled learn what a plain one learns, and go on bit for bit after a stop?

    python bench/levers.py                            # every lever and mixture: some minutes on two cores
    python bench/levers.py --only "frozen nf4" swap      # these; what the result file has of others stays

Each setting trains a tiny BAGEL with the real trainer on the same pictures: once in one go, and once stopped half way
and resumed. The first is compared with the plain fp32 run (mean loss of the last tenth of the steps), the second with
the first (every loss of every step, to the last bit).
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.environment import environment
from reca_fast.cli.options import parse
from reca_fast.config import RunConfig
from reca_fast.models.bagel.tiny import write_tiny_checkpoint
from reca_fast.train import train

RESULT = Path(__file__).resolve().parent / "results" / "levers.json"
PLAIN = "plain"
TOLERANCE = 0.02
"""How far the final loss may be from the plain run's, as a share of it."""
BF16 = "--model.precision bf16"
LEAN = f"{BF16} --memory.trained bf16 --memory.order layer --memory.recompute blocks"
AWAY = "--memory.gradients host --memory.frozen_on host --memory.swap 1"
SETTINGS: dict[str, str] = {
    PLAIN: "",
    "bf16 arithmetic": BF16,
    "trained bf16": f"{BF16} --memory.trained bf16",
    "frozen int8": "--memory.frozen int8",
    "frozen nf4": "--memory.frozen nf4",
    "recompute": "--memory.recompute blocks",
    "selective, kept on host, MLP in chunks": "--memory.recompute selective --memory.keep_on host --memory.mlp_rows 16",
    "matmul int8": f"{BF16} --memory.matmul int8",
    "matmul fp8": f"{BF16} --memory.matmul fp8",
    "rows rounded": "--data.round_rows 64",
    "order layer": "--memory.order layer",
    "gradients host": "--memory.order layer --memory.gradients host",
    "gradients twice": "--memory.order layer --memory.gradients twice",
    "frozen on host": "--memory.order layer --memory.recompute blocks --memory.frozen_on host",
    "swap": "--memory.order layer --memory.recompute blocks --memory.gradients host --memory.swap 0.5",
    "optim adamw8bit": "--optim.kind adamw8bit",
    "optim adamw8bit_ao": "--optim.kind adamw8bit_ao",
    "optim adamw4bit_ao": "--optim.kind adamw4bit_ao",
    "optim adafactor": "--optim.kind adafactor",
    "optim states on host": "--optim.states host",
    "optim adamw8bit, bf16, all away": f"{LEAN} {AWAY} --optim.kind adamw8bit --optim.states host",
    "nf4, bf16, twice": f"{LEAN} --memory.frozen nf4 --memory.gradients twice",
    "int8, bf16, all away": f"{LEAN} {AWAY} --memory.frozen int8",
}
"""Name of a lever or mixture -> its options."""


def pictures(folder: Path) -> None:
    """Twelve pictures of coloured areas."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        areas = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(areas).resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number:02d}.png")


def configuration(base: Path, data: Path, out: Path, options: str, steps: int) -> RunConfig:
    text = f"--config tiny-bagel --model.path {base} --data.source {data} --out {out} --device cpu --steps {steps}"
    text += " --save_every 0 --sample_every 0 --data.packs_per_step 2 --data.tokens_per_pack 120 --data.shuffle true"
    text += " --data.target_resize.max_size 32 --data.target_resize.min_size 32"
    text += " --data.condition_resize.max_size 28 --data.condition_resize.min_size 28"
    text += " --optim.lr 2e-3 --optim.warmup_steps 10 --optim.schedule constant"
    return parse(RunConfig, "train", [*text.split(), *options.split()])


def losses(config: RunConfig) -> list[float]:
    """Train, and give the loss of every step that the run folder knows."""
    with quiet():
        train(config)
    rows = map(json.loads, (Path(config.out) / "metrics.jsonl").read_text().splitlines())
    by_step = {row["step"]: row["loss"] for row in rows}
    return [by_step[step] for step in sorted(by_step)]


@contextmanager
def quiet() -> Iterator[None]:
    with redirect_stdout(StringIO()):
        yield


def measure(folder: Path, base: Path, data: Path, options: str, steps: int) -> dict[str, Any]:
    """The final loss of a setting, and whether a resumed run repeats every loss."""
    whole = losses(configuration(base, data, folder / "whole", options, steps))
    half = configuration(base, data, folder / "halves", options, steps // 2)
    losses(half)
    resumed = losses(configuration(base, data, folder / "halves", options, steps))
    shutil.rmtree(folder)
    last = whole[-max(1, steps // 10) :]
    return {"final_loss": mean(last), "first_loss": whole[0], "resumes_bit_for_bit": resumed == whole}


def write(path: Path, steps: int, rows: dict[str, dict[str, Any]]) -> None:
    report = {"environment": environment(), "steps": steps, "tolerance": TOLERANCE, "settings": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULT, help="result file (JSON)")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    torch.set_num_threads(1)
    console = Console(stderr=True)
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    rows: dict[str, dict[str, Any]] = before.get("settings", {}) if before.get("steps") == args.steps else {}
    names = [name for name in SETTINGS if name in args.only or (name == PLAIN and name not in rows)]
    with tempfile.TemporaryDirectory() as place:
        base, data = Path(place) / "base", Path(place) / "pictures"
        write_tiny_checkpoint(base, hidden_size=64, intermediate_size=128, layers=3, vit_hidden_size=48, text_vocab=300)
        pictures(data)
        for name in names:
            row = rows[name] = measure(Path(place) / "run", base, data, SETTINGS[name], args.steps)
            row["ratio"] = row["final_loss"] / rows[PLAIN]["final_loss"]
            row["options"] = SETTINGS[name]
            row["holds"] = abs(row["ratio"] - 1) <= TOLERANCE and row["resumes_bit_for_bit"]
            console.print(f"{name}: {row['final_loss']:.4f}, {row['ratio']:.4f} of plain, holds: {row['holds']}")
            write(args.out, args.steps, rows)
    table = Table(title=f"Tiny BAGEL, {args.steps} steps: mean loss of the last tenth")
    for column in ("setting", "first loss", "final loss", "of plain", "resumed"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for name, row in rows.items():
        same = "bit for bit" if row["resumes_bit_for_bit"] else "DIFFERS"
        table.add_row(name, f"{row['first_loss']:.4f}", f"{row['final_loss']:.4f}", f"{row['ratio']:.4f}", same)
    Console().print(table)
    console.print(f"written: {args.out}")
    if broken := [name for name, row in rows.items() if not row["holds"]]:
        raise SystemExit(f"not within {TOLERANCE:.0%} of plain, or not resumed bit for bit: {', '.join(broken)}")


if __name__ == "__main__":
    main()
