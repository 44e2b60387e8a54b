"""`reca-fast train`: RECA post-training."""

from collections.abc import Sequence

from reca_fast.cli.options import parse
from reca_fast.config import RunConfig


def run(args: Sequence[str]) -> int:
    """Exit code 0 when training finished or a signal ended it after a save."""
    config = parse(RunConfig, "train", args)
    from reca_fast.train import run as run_training

    run_training(config)
    return 0
