"""`reca-fast export RUN OUT`: a training checkpoint becomes a checkpoint folder that the authors' code reads."""

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
    """The checkpoint folder that the run started from, where it has moved since."""
    base_weights: Place = ""
    """The file of weights in that folder, as model.weights of `train` names it; the run's own by default."""
    weights: Literal["live", "average"] = "live"
    """live: the trained weights; average: their moving average, which a run has with optim.ema_decay above 0."""
    dtype: Literal["base", "fp32", "bf16"] = "base"
    """Dtype of the written weights; base is the dtype that the base checkpoint has."""
    verify_checkpoint: bool = True
    """Compare the training checkpoint with its checksums before anything is written."""


def main(args: Sequence[str]) -> int:
    export(parse(ExportOptions, "export", args, positional=POSITIONAL))
    return 0


def export(options: ExportOptions) -> None:
    """Write the checkpoint folder, and say what is in it.

    Raises:
        UserError: the run holds no whole checkpoint, or its base is another one now.
    """
    import torch

    from reca_fast.checkpoints import CheckpointStore, SavedWeights, fault
    from reca_fast.config import LoraConfig, ModelConfig
    from reca_fast.memory.adapters import merged
    from reca_fast.models import open_model
    from reca_fast.models.files.identity import identity_of_files
    from reca_fast.schema import from_dict
    from reca_fast.train.saved import read_saved
    from reca_fast.verify.unchanged import compare_frozen, in_one_line

    folder = Path(options.run)
    is_checkpoint = re.fullmatch(r"step-\d{7}", folder.name) is not None
    if is_checkpoint:
        if reason := fault(folder, verify=options.verify_checkpoint):
            raise UserError(f"{folder} is no whole checkpoint ({reason}); export an older one.")
    else:
        newest = CheckpointStore(folder / "checkpoints").newest(verify=options.verify_checkpoint, tell=print)
        if newest is None:
            raise UserError(f"{folder} holds no whole checkpoint (checkpoints/step-*).")
        folder = newest
    state = read_saved(folder)
    base = options.base or state.base
    if not Path(base).is_dir():
        moved = "" if options.base else ", from which the run started,"
        raise UserError(f"The checkpoint folder {base}{moved} does not exist; set --base to where it is.")
    before = from_dict(ModelConfig, state.config.get("model"), f"model of the settings in {folder}")
    file, freeze_und = options.base_weights or before.weights, before.freeze_und
    model = open_model(ModelConfig(path=base, weights=file, freeze_und=freeze_und))
    now = identity_of_files(model.files())
    if differing := [name for name, sum_ in now.items() if state.content.get("model.path", {}).get(name) != sum_]:
        said = f"{base} is not what the run started from, it differs in {', '.join(differing)}."
        if not options.base:
            raise UserError(f"{said} Set --base to where that checkpoint is.")
        print(f"{said} What was not trained is taken from there all the same, as --base asks.")
    trained = SavedWeights(folder, "model" if options.weights == "live" else "average")
    dtype = {"base": None, "fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    lora = from_dict(LoraConfig, state.config.get("lora", {}), f"lora of the settings in {folder}")
    weights = merged(trained, lora) if lora.rank else trained
    left = model.export(Path(options.out), weights, dtype)
    what = f"{len(weights)} layers with adapters merged in" if lora.rank else f"{len(trained)} trained tensors"
    print(f"{options.out}: {what} ({options.weights}) of {folder.name}, the rest from {base}.")
    print(model.says_weights())
    exported = open_model(ModelConfig(path=options.out, freeze_und=freeze_und))
    verdicts = list(compare_frozen(model, exported))
    print(in_one_line(verdicts, Path(base)))
    if left:
        print(f"not copied: {', '.join(left[:10])}{f' and {len(left) - 10} more' if len(left) > 10 else ''}")
