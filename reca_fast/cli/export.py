"""`reca-fast export RUN OUT`: a training checkpoint becomes a folder that the authors' code loads."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reca_fast.cli.options import parse
from reca_fast.config import Place
from reca_fast.errors import UserError

POSITIONAL = {
    "run": "A run folder (its newest checkpoint is taken) or one checkpoint of it (.../checkpoints/step-0001000).",
    "out": "The folder to write; it must not exist, or be empty.",
}


@dataclass
class ExportOptions:
    run: Place
    out: Place
    base: Place = ""
    """Checkpoint folder that the run started from, when it has moved since."""
    weights: Literal["live", "average"] = "live"
    """live: the trained weights; average: their moving average (only when optim.ema_decay was above 0)."""
    dtype: Literal["base", "fp32", "bf16"] = "base"
    """Dtype in the file; base keeps what the base checkpoint has."""


def run(args: Sequence[str]) -> int:
    options = parse(ExportOptions, "export", args, positional=POSITIONAL)
    import torch

    from reca_fast.checkpoints import CheckpointStore, SavedWeights
    from reca_fast.config import ModelConfig
    from reca_fast.models import open_adapter

    folder = Path(options.run)
    is_checkpoint = re.fullmatch(r"step-\d{7}", folder.name) is not None
    store = CheckpointStore(folder.parent if is_checkpoint else folder / "checkpoints")
    whole = [path for _, path in store.whole() if path == folder or not is_checkpoint]
    if not whole:
        raise UserError(f"{folder} {'is' if is_checkpoint else 'holds'} no whole checkpoint (checkpoints/step-*).")
    folder = whole[-1]
    state = store.read_state(folder)
    base = options.base or state["base"]
    if not Path(base).is_dir():
        moved = "" if options.base else ", from which the run started,"
        raise UserError(f"The checkpoint folder {base}{moved} does not exist; set --base to where it is.")
    adapter = open_adapter(ModelConfig(path=base))
    trained = SavedWeights(folder, "model" if options.weights == "live" else "average")
    dtype = {"base": None, "fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    adapter.export(Path(options.out), trained, dtype)
    print(f"{options.out}: {len(trained)} trained tensors ({options.weights}) of {folder.name}, the rest from {base}.")
    return 0
