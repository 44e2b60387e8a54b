"""`reca-fast train`: RECA post-training of a checkpoint on pictures."""

import os
from collections.abc import Sequence

from reca_fast.cli.options import parse
from reca_fast.config import RunConfig
from reca_fast.errors import UserError


def main(args: Sequence[str]) -> int:
    """Exit code 0 when training finished or SIGTERM ended it after a save, 130 when Ctrl-C did."""
    try:
        config = parse(RunConfig, "train", args)
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            return 2  # of the processes that torchrun started, the first one says it
        raise
    from reca_fast.train import train

    train(config)
    return 0
