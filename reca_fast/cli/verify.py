"""`reca-fast verify CASE_DIR`: are our numbers the authors' numbers?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reca_fast.cli.options import parse
from reca_fast.config import Attention, Place
from reca_fast.errors import UserError

POSITIONAL = {
    "case": "A parity case (config.json, weights, inputs, expected tensors), or a checkpoint folder to check alone",
}


@dataclass
class VerifyOptions:
    case: Place
    out: Place = ""
    """Write every computed tensor to this safetensors file."""
    weights: Place = ""
    """Of a case: take the weights from this file or checkpoint folder instead of its own (round trip of an export). Of
    a checkpoint folder: the name of its file of weights, as model.weights of `train`.
    """
    attention: Attention = "auto"
    """Attention backend to check."""
    dtype: Literal["fp32", "fp64", "bf16"] = "fp32"
    """Arithmetic to check."""


def run(args: Sequence[str]) -> int:
    """Exit code 0: all agree; 1: one does not; 2: the case cannot be read."""
    options = parse(VerifyOptions, "verify", args, positional=POSITIONAL)
    folder = Path(options.case)
    if not folder.is_dir():
        raise UserError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; verify takes a folder.")
    if (folder / "inputs.safetensors").exists():
        return _verify_case(folder, options)
    return _verify_checkpoint(folder, options.weights or "auto")


def _verify_checkpoint(folder: Path, weights: str) -> int:
    from reca_fast.models import MODELS, model_class, recognised

    known = recognised(folder)
    if known is None and not any(folder.glob("*ema*.safetensors")) and not any(folder.glob("*model*.safetensors")):
        marks = " or ".join(model_class(name).MARK for name in MODELS)
        raise UserError(
            f"{folder} is neither a parity case (config.json and inputs.safetensors) nor a checkpoint folder "
            f"({marks} and weights); name the folder that holds these files."
        )
    # Weights without the file that tells whose they are: the first model says what is missing.
    print((known or model_class(next(iter(MODELS)))).check(folder, weights))
    return 0


def _verify_case(folder: Path, options: VerifyOptions) -> int:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from reca_fast.verify.compare import compare
    from reca_fast.verify.replay import open_case, replay

    dtype = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}[options.dtype]
    case = open_case(folder)
    weights = Path(options.weights) if options.weights else None
    got = replay(case, folder, attention=options.attention, dtype=dtype, weights=weights)
    if options.out:
        try:
            Path(options.out).parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in got.items()}, options.out)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{options.out} cannot be written: {error}.") from None

    wanted = case.expected()
    if not wanted:
        print(f"{len(got)} tensors computed; the case holds no expected ones to compare them with.")
        return 0
    verdicts = compare(wanted, got, lambda name: case.tolerance(name, dtype))
    for verdict in verdicts:
        print(verdict)
    failed = [verdict.name for verdict in verdicts if not verdict.agrees]
    conclusion = "all agree" if not failed else f"{len(failed)} DISAGREE, first {failed[0]}"
    print(f"{folder.name}: {len(wanted)} tensors, attention={options.attention}, {options.dtype}: {conclusion}.")
    return 1 if failed else 0
