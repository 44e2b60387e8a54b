"""Plan every shipped recipe of a published model on the card that it is made for, beside the authors' trainer.

python bench/plans.py                    # some minutes on two cores; writes bench/results/plan_bagel.json
python bench/plans.py --only bagel-24gb
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.environment import environment
from reca_fast.cli.options import parse
from reca_fast.config import RunConfig
from reca_fast.hardware import find_gpu
from reca_fast.models import published_model
from reca_fast.plan import make_plan

RESULT = Path(__file__).resolve().parent / "results" / "plan_bagel.json"
CARDS: dict[str, tuple[str, int]] = {
    "bagel": ("H200", 1),
    "bagel-10gb-qlora": ("RTX 3080", 1),
    "bagel-12gb": ("RTX 3060", 1),
    "bagel-16gb": ("RTX 4060 Ti", 1),
    "bagel-24gb": ("RTX 4090", 1),
    "bagel-48gb": ("L40S", 1),
    "bagel-80gb": ("H100", 1),
    "bagel-8x80gb": ("H100", 8),
}
"""Recipe -> the card that it is made for, and how many of them."""
AUTHORS_ONE_GPU, AUTHORS_SHARE = 344e9, 57e9
"""Bytes on each GPU that the authors' step takes: alone, whatever the pack, and on each of eight with eight pictures of
1024 x 1024. Simulated with their modules at full size, without NCCL's and cuDNN's workspaces.
"""


def settings(recipe: str) -> RunConfig:
    return parse(RunConfig, "train", ["--config", recipe])


def planned(recipe: str) -> dict[str, Any]:
    """The plan of a recipe, and the settings that it is the plan of."""
    card, gpus = CARDS[recipe]
    config = settings(recipe)
    start = time.process_time()
    plan = make_plan(config, published_model(config.model.name, config.model), find_gpu(card), gpus)
    took = time.process_time() - start
    authors = AUTHORS_ONE_GPU if gpus == 1 else AUTHORS_SHARE
    of = json.loads(json.dumps({group: asdict(config)[group] for group in ("memory", "lora", "optim", "data")}))
    return plan.as_json() | {"authors_gib": round(authors / 2**30, 1), "cpu_seconds": round(took, 1), "settings": of}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CARDS))
    parser.add_argument("--out", type=Path, default=RESULT, help="result file (JSON); other recipes' plans in it stay")
    args = parser.parse_args()
    console = Console(stderr=True)
    report = json.loads(args.out.read_text()) if args.out.exists() else {"recipes": {}}
    for recipe in [args.only] if args.only else CARDS:
        row = report["recipes"][recipe] = planned(recipe)
        console.print(f"{recipe}: {row['peak_gpu_gib']:.1f} of {row['gpu_gib']:.1f} GiB")
    report["environment"] = environment()
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    table = Table(title="BAGEL-7B-MoT, planned (GiB at the peak of each GPU, and of the host)")
    for column in ("recipe", "card", "GPU", "host", "authors'", "images", "TFLOP an image", "s a step"):
        table.add_column(column, justify="left" if column in ("recipe", "card") else "right")
    for recipe, row in report["recipes"].items():
        card = row["gpu"] if row["gpus"] == 1 else f"{row['gpus']} x {row['gpu']}"
        figures = (row["peak_gpu_gib"], row["peak_host_gib"], row["authors_gib"])
        more = (row["images_per_step"], f"{row['tflop_per_image']:.0f}", f"{row['step_seconds']:.1f}")
        table.add_row(recipe, card, *(f"{gib:.1f}" for gib in figures), *map(str, more))
    Console().print(table)
    console.print(f"written: {args.out}")


if __name__ == "__main__":
    main()
