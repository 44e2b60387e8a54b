"""Mistakes made on purpose, in the kernels' formulas that a run on a CPU computes with: does the regression tell?

`python -m tests.proof.mutants --out docs/proof` trains the reference with each of them, and adds what came of it to
regression.json and its page. `python -m tests.proof.mutants NAME train ...` is one of these trainings: the command line
with the mistake in it.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sana: Any = import_module("reca_fast.models.openuni.sana")
openuni: Any = import_module("reca_fast.models.openuni.model")
"""Modules whose names of operations are replaced."""


class _Scaled(torch.autograd.Function):
    """The same numbers, with a gradient that is scaled."""

    @staticmethod
    def forward(ctx, x: Tensor, by: float) -> Tensor:
        ctx.by = by
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.by, None


def scaled(x: Tensor, by: float) -> Tensor:
    return _Scaled.apply(x, by)


def sign_flip() -> None:
    right = sana.varlen_attention

    def wrong(q, k, v, segments, **more):
        return right(q, k, scaled(v, -1.0), segments, **more)

    sana.varlen_attention = wrong


def gradient_scale() -> None:
    right = openuni.flow_loss_by_task

    def wrong(velocity, *others, **more):
        return right(scaled(velocity, 2.0), *others, **more)

    openuni.flow_loss_by_task = wrong


def dropped_row() -> None:
    right = sana.swiglu

    def wrong(gate, up, **more):
        out = right(gate, up, **more)
        kept = torch.arange(out.shape[-2]) % 8 != 7
        return out * kept[:, None]

    sana.swiglu = wrong


def wrong_mask() -> None:
    right = sana.varlen_attention

    def wrong(q, k, v, segments, **more):
        ends = [torch.tensor([0, len(x)], dtype=torch.int32) for x in (q, k)]
        one = segments._replace(cu_seqlens_q=ends[0], cu_seqlens_k=ends[1], max_seqlen_q=len(q), max_seqlen_k=len(k))
        return right(q, k, v, one, **more)

    sana.varlen_attention = wrong


class Mutant(NamedTuple):
    """A mistake in the training alone: what was trained is measured by code that is right."""

    what: str
    make: Callable[[], None]


MUTANTS = {
    "sign-flip": Mutant("the gradient of attention's values to the context has the other sign", sign_flip),
    "gradient-scale": Mutant("every gradient is twice too large", gradient_scale),
    "dropped-row": Mutant("every eighth row of the gated product is lost", dropped_row),
    "wrong-mask": Mutant("pictures attend to the conditions of all others in the pack", wrong_mask),
}


def main() -> int:
    if sys.argv[1:] and sys.argv[1] in MUTANTS:
        from reca_fast.cli import main as reca_fast

        MUTANTS[sys.argv[1]].make()
        return reca_fast(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.proof.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/proof", help="where regression.json is, which gives steps and prompts")
    parser.add_argument("--runs", default="runs/study", help="folder for the runs")
    parser.add_argument("--base", default="", help="checkpoint folder; the shipped one unless given")
    options = parser.parse_args()
    return try_all(Path(options.out), Path(options.runs), options.base)


def try_all(out: Path, runs: Path, base: str) -> int:
    """Train every mutant, add it to the results and make their page again; 1 where one is inside all bands."""
    from reca_fast.cli.options import parse_stages
    from reca_fast.config import RunConfig
    from reca_fast.proof.arms import BASES
    from reca_fast.proof.environment import hash_of
    from reca_fast.proof.regression import OF_TRAINING, Plan, trial_of
    from reca_fast.proof.regression_page import write_page
    from reca_fast.proof.schedule import run_all
    from reca_fast.proof.trial import run_trial, write_json
    from reca_fast.schema import read_json

    results = read_json(out / "regression.json")
    folder = Path(base) if base else BASES["openuni"]
    if results["base"] != hash_of(folder):
        raise SystemExit(f"{out}/regression.json is of another base than {folder}; give that with --base.")
    plan = Plan(runs, folder, 1, results["steps"], results["prompts"], results["recipe"])
    trials = [
        trial_of(
            *(plan, lambda args: parse_stages(RunConfig, "train", args), f"mutant-{name}"),
            program=("-m", "tests.proof.mutants", name),
        )
        for name in MUTANTS
    ]
    done = run_all(trials, 1, run_trial)
    results["mutants"] = {
        name: {"what": mutant.what, **{part: result[part] for part in ("seed", "environment", *OF_TRAINING, "scores")}}
        for (name, mutant), result in zip(MUTANTS.items(), done, strict=True)
    }
    write_json(out / "regression.json", results)
    wrong = write_page(results, out)
    print(f"{out}/regression.md has the mutants.{f' Not where they have to be: {wrong}.' if wrong else ''}")
    return 1 if set(wrong) & set(MUTANTS) else 0


if __name__ == "__main__":
    sys.exit(main())
