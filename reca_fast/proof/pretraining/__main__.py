"""`python -m reca_fast.proof.pretraining`: make the base that the demo and the study begin with, from a seed.

First an understanding is taught (`understanding.py`), then SANA learns to draw from sparse captions, by the trainer and
the recipe toy-base like any other model. Stopped, the same command goes on from where it was. With `--model` it makes
that of another model, which learns to understand and to draw at once, by the trainer and the recipe proof/base-NAME.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reca_fast.config import RunConfig
from reca_fast.errors import UserError, writing
from reca_fast.proof.trial import write_json
from reca_fast.schema import read_json
from reca_fast.toy import POOLS

from .checkpoint import CHANNELS, toy_config, write_checkpoint, write_toy_tokenizer
from .codec import components
from .lessons import Lessons, shown
from .others import WRITERS
from .probe import transfer
from .understanding import Course, Understanding, teach

RECIPE = "toy-base"
ASKED = "asked.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reca_fast.proof.pretraining", description=__doc__)
    parser.add_argument("--model", choices=("openuni", *WRITERS), default="openuni", help="whose base it is")
    parser.add_argument("--out", help="folder for the base and all before it (default: runs/toy-base, or -MODEL of it)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the lessons and the training")
    parser.add_argument("--lessons", type=int, default=Course.steps, help="steps of teaching OpenUni's understanding")
    parser.add_argument("--steps", type=int, default=None, help="steps of learning to draw (default: the recipe's)")
    parser.add_argument("--pictures", type=int, default=8192, help="of toy:base that OpenUni draws")
    options = parser.parse_args()
    suffix = "" if options.model == "openuni" else f"-{options.model}"
    options.out = options.out or f"runs/toy-base{suffix}"
    out = Path(options.out)
    try:
        with writing(out):
            begin(out, {name: value for name, value in vars(options).items() if name != "out"})
            if options.model != "openuni":
                return make_other(out, options.model, options.seed, options.steps)
            return make_base(out, options.seed, options.lessons, options.steps, options.pictures)
    except UserError as error:
        print(f"reca-fast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reca-fast: stopped; the same command goes on.", file=sys.stderr)
        return 130


def begin(out: Path, asked: dict[str, Any]) -> None:
    """Make the folder and note what is made in it.

    Raises:
        UserError: something else was begun there, of which nothing may pass into this base.
    """
    out.mkdir(parents=True, exist_ok=True)
    note = out / ASKED
    if note.is_file() and (before := read_json(note)) != asked:
        raise UserError(
            f"{out} holds a base of other options ({json.dumps(before)}); name another --out, or remove it."
        )
    write_json(note, asked)


def make_base(out: Path, seed: int, lessons: int, steps: int | None, pictures: int) -> int:
    """Make the base in `out`/base. Returns 0, or the exit code of a verb that failed.

    Args:
        out: gone on from, where something of it is there.
        seed: of everything.
        lessons: steps of teaching the understanding.
        steps: of learning to draw; None takes the recipe's.
        pictures: how many of toy:base are learned from.
    """
    taught = out / "taught"
    out.mkdir(parents=True, exist_ok=True)
    if not (taught / "openuni_toy.safetensors").is_file():
        _teach(taught, seed, lessons)
    given = ["--config", RECIPE, "--model.path", str(taught), "--data.limit", str(pictures)]
    commands = [["cache", *given, "--out", str(out / "cache")]]  # nothing is encoded twice
    training = ["train", *given, "--data.cache", str(out / "cache"), "--out", str(out / "drawing")]
    training += ["--seed", str(RunConfig.seed + seed)]  # seed 0 is the recipe as it is
    commands.append([*training, *(["--steps", str(steps)] if steps else [])])
    return _run(commands, out)


def make_other(out: Path, model: str, seed: int, steps: int | None) -> int:
    """Make the base of another model in `out`/base. Returns 0, or the exit code of a verb that failed.

    Args:
        out: gone on from, where something of it is there.
        model: a key of WRITERS.
        seed: of everything.
        steps: of training; None takes the recipe's.
    """
    begun = out / "begun"
    if not begun.is_dir():
        partial = out / ".begun"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        WRITERS[model](partial, seed)
        partial.rename(begun)
    training = ["train", "--config", f"proof/base-{model}", "--model.path", str(begun), "--seed", str(seed)]
    return _run([[*training, "--out", str(out / "drawing"), *(["--steps", str(steps)] if steps else [])]], out)


def _run(commands: Sequence[Sequence[str]], out: Path) -> int:
    """Run verbs, the last of which trains in `out`/drawing, and export what it trained. Exit code as in `make_base`."""
    base = out / "base"
    if base.exists():
        shutil.rmtree(base)
    for command in (*commands, ["export", str(out / "drawing"), str(base), "--weights", "average"]):
        print(f"Now `reca-fast {' '.join(command)}`:", flush=True)
        if code := subprocess.run([sys.executable, "-m", "reca_fast", *command]).returncode:
            return code
    for file in sorted(path for path in base.rglob("*") if path.is_file()):
        print(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(base)}")
    return 0


def _teach(folder: Path, seed: int, steps: int) -> None:
    """Write the checkpoint of a taught understanding and the codec. What it is worth is written beside it."""
    config = toy_config()
    tokenizer = write_toy_tokenizer(folder)
    count = POOLS["understanding"].size
    lessons = Lessons(tokenizer, config.picture_tokens, count=count, seed=seed)
    understanding = Understanding(config, seed)

    def tell(step: int, loss: float) -> None:
        if step % 20 == 0 or step == steps:
            print(f"lesson {step}/{steps}  loss {loss:.4f}", flush=True)

    torch.set_num_threads(1)  # layers this small gain nothing from a second thread
    teach(understanding, lessons, tokenizer.picture, Course(steps, seed=seed), folder / "taught.pt", tell)
    probes = transfer(understanding, lessons, tokenizer.picture)
    for name, (to_pictures, to_texts) in probes.items():
        print(f"{name}: a probe of texts reads {to_pictures:.3f} of pictures, one of pictures {to_texts:.3f} of texts")
    found = components(torch.cat([shown("base", range(4096))[1], shown("understanding", range(4096))[1]]), CHANNELS)
    write_checkpoint(folder, understanding, found, seed)
    (folder.parent / "probes.json").write_text(json.dumps(probes, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
