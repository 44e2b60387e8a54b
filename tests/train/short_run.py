"""A training run in this process, and the numbers that it computed."""

import importlib
import json
from pathlib import Path

running = importlib.import_module("reca_fast.train.run")
"""The module: `reca_fast.train.run` is also the name of the function in it."""

Course = dict[int, tuple]
"""Step -> loss, gradient norm, learning rate and number of pictures."""


def course(out: Path) -> Course:
    """What the run in this folder computed, after its first step."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: (row["loss"], row["grad_norm"], row["lr"], row["images"]) for row in rows if row["step"] > 1}
