"""`reca-fast train`: RECA post-training of a checkpoint on pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

from reca_fast.cli.options import parse_stages
from reca_fast.config import RunConfig
from reca_fast.errors import UserError


def main(args: Sequence[str]) -> int:
    """Exit code 0 when training finished or SIGTERM ended it after a save, 130 when Ctrl-C did."""
    try:
        stages = parse_stages(RunConfig, "train", args)
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            return 2  # of the processes that torchrun started, the first one says it
        raise
    from reca_fast.train import train, train_stages

    if len(stages) == 1 and not stages[0][0]:
        train(stages[0][1])
    else:
        train_stages(stages, export_to)
    return 0


def export_to(run: Path, out: Path) -> None:
    """Turn a finished stage into the checkpoint that the next one starts from."""
    from reca_fast.cli.export import ExportOptions, export

    export(ExportOptions(str(run), str(out)))
