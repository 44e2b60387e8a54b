"""`reca-fast verify FOLDER`: does a recorded case give the authors' numbers again, is a checkpoint folder or a cache
whole, has an export kept what its base understood?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reca_fast.cli.options import parse
from reca_fast.config import Attention, Place
from reca_fast.errors import UserError

POSITIONAL = {
    "case": "A parity case (config.json, weights, inputs, expected tensors), which is computed again and compared; or "
    "a checkpoint folder, whose names, shapes and numbers are checked; or a cache that `reca-fast cache` made, which "
    "is compared with its checksums; or, with --unchanged, an export",
}


@dataclass
class VerifyOptions:
    case: Place
    unchanged: Place = ""
    """The checkpoint folder that a training began with: prove that what was frozen (understanding expert, vision tower,
    connector, embeddings, VAE) is in the export, byte for byte, and that the logits of a fixed picture and text are
    equal to the last bit. Both folders are read once; it takes no GPU and little memory.
    """
    out: Place = ""
    """Of a case: the safetensors file to which every computed tensor is written."""
    weights: Place = ""
    """Of a case: a file or a checkpoint folder to take the weights from instead of its own, which shows whether an
    export has kept them. Of a checkpoint folder (with --unchanged: of that one): the name of its file of weights, as
    model.weights of `train`.
    """
    attention: Attention = "auto"
    """The attention backend to compute a case with."""
    dtype: Literal["fp32", "fp64", "bf16"] = "fp32"
    """The arithmetic to compute a case in."""


def main(args: Sequence[str]) -> int:
    """Exit code 0 when all tensors agree or the checkpoint is whole, 1 when a tensor does not agree or has changed."""
    options = parse(VerifyOptions, "verify", args, positional=POSITIONAL)
    folder = Path(options.case)
    if not folder.is_dir():
        raise UserError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; verify takes a folder.")
    if options.unchanged:
        return _verify_unchanged(options.unchanged, options.weights or "auto", folder)
    if (folder / "inputs.safetensors").exists():
        return _verify_case(folder, options)
    if (folder / "cache.json").exists():
        from reca_fast.data.cache.source import verify_cache

        print(verify_cache(folder))
        return 0
    return _verify_checkpoint(folder, options.weights or "auto")


def _verify_checkpoint(folder: Path, weights: str) -> int:
    from reca_fast.models import MODELS, marks, model_class, recognised

    known = recognised(folder)
    if known is None and not any(folder.glob("*ema*.safetensors")) and not any(folder.glob("*model*.safetensors")):
        raise UserError(
            f"{folder} is neither a parity case (config.json and inputs.safetensors) nor a checkpoint folder "
            f"({marks()} and weights); name the folder that holds these files."
        )
    # Weights without the file that tells whose they are: the first model says what is missing.
    print((known or model_class(next(iter(MODELS)))).check(folder, weights))
    return 0


def _verify_unchanged(base: str, weights: str, folder: Path) -> int:
    from reca_fast.config import ModelConfig
    from reca_fast.models import open_model
    from reca_fast.verify.unchanged import changed_besides, compare_frozen, same_bits

    before, after = open_model(ModelConfig(path=base, weights=weights)), open_model(ModelConfig(path=str(folder)))
    if type(before) is not type(after):
        raise UserError(f"{folder} is a checkpoint of another architecture than {base}; name an export of it.")
    verdicts = []
    for verdict in compare_frozen(before, after):
        print(verdict)
        verdicts.append(verdict)
    changed, trained = changed_besides(before, after)
    print(f"what is trained: {changed} of {trained} tensors differ from {base}")
    failed = [verdict.name for verdict in verdicts if verdict.differing]
    logits = "logits of a fixed picture and text:"
    if failed or any(verdict.wider for verdict in verdicts):
        why = "the weights differ" if failed else "another dtype rounds otherwise"
        print(f"{logits} not compared, {why}")
    else:
        ours, theirs = before.understanding(), after.understanding()
        if same_bits(ours, theirs):
            print(f"{logits} {list(ours.shape)}, bit-equal")
        else:
            print(
                f"{logits} they DIFFER although all that is frozen is the same: what understands was trained, or "
                "other files of the folders differ"
            )
            failed.append("logits")
    told = f"CHANGED: {', '.join(failed)}" if failed else "unchanged"
    print(f"{folder}: understanding is {told}{'' if failed else f', it is that of {base}'}.")
    return 1 if failed else 0


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
