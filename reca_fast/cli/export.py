"""`reca-fast export RUN OUT`: a training checkpoint becomes a folder that the authors' code loads."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reca_fast.cli.options import parse
from reca_fast.errors import UserError


@dataclass
class ExportOptions:
    run: str
    """A run folder (its newest checkpoint is taken) or one checkpoint of it (.../checkpoints/step-0001000)."""
    out: str
    """The folder to write; it must not exist, or be empty."""
    base: str = ""
    """Checkpoint folder that the run started from, when it has moved since."""
    weights: Literal["live", "average"] = "live"
    """live: the trained weights; average: their moving average (only when optim.ema_decay was above 0)."""
    dtype: Literal["base", "fp32", "bf16"] = "base"
    """Dtype in the file; base keeps what the base checkpoint has."""


def run(args: Sequence[str]) -> int:
    options = parse(ExportOptions, "export", args, positional=["run", "out"], about=__doc__ or "")
    import torch

    from reca_fast.checkpoints import CheckpointStore, SavedWeights
    from reca_fast.config import ModelConfig
    from reca_fast.models import open_adapter

    folder = Path(options.run)
    if not re.fullmatch(r"step-\d{7}", folder.name):
        newest = CheckpointStore(folder / "checkpoints").latest()
        if newest is None:
            raise UserError(f"{folder} holds no whole checkpoint (checkpoints/step-*).")
        folder = newest[1]
    state = CheckpointStore(folder.parent).read_state(folder)
    adapter = open_adapter(ModelConfig(path=options.base or state["base"], **_trained_part(state)))
    trained = SavedWeights(folder, "model" if options.weights == "live" else "average")
    dtype = {"base": None, "fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    adapter.export(Path(options.out), trained, dtype)
    print(f"{options.out}: {folder.name} with {len(trained)} trained tensors ({options.weights}), the rest from {adapter.options.path}.")
    return 0


def _trained_part(state: dict) -> dict:
    return {"freeze_und": state["config"]["model"]["freeze_und"]}
