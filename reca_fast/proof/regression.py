"""The quality regression: the short recipe by every fast path has to end where the seeds of the plain path end.

A kernel that is subtly wrong, or a lever that loses a row, still gives a loss that falls. So each path is judged by
what it has taught: its loss at the end, how many pictures are drawn again exactly, and the overall score, each inside a
band that the seeds of the reference span. The norm of the gradients has a band as well: where all of them are too large
alike, clipping and AdamW divide that out again, and nothing else tells.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from shutil import which
from statistics import mean, stdev
from typing import Any

import torch

from .caches import SQUARE, shared_cache
from .environment import hash_of
from .study import EQUAL, Resolve, with_seed
from .trial import COMMAND, Trial, finished


@dataclass(frozen=True)
class Way:
    """One way to compute the recipe."""

    name: str
    options: tuple[str, ...]
    what: str
    processes: int = 1
    needs: str = ""
    """A package, `cuda` or `g++`, without which it cannot run."""

    def lacks(self) -> str:
        """What this machine lacks for it; empty where it can run."""
        if self.needs == "cuda":
            return "" if torch.cuda.is_available() else "an NVIDIA GPU"
        if self.needs == "g++":
            return "" if which("g++") else "the C++ compiler g++, in which torch.compile writes for a CPU"
        return "" if not self.needs or find_spec(self.needs) else f"the package {self.needs}"


REFERENCE = "reference"
PLAIN = (
    *("--model.kernels", "reference", "--model.attention", "sdpa", "--model.precision", "fp32"),
    *("--optim.kind", "adamw", "--optim.lr", "5e-3", "--optim.ema_decay", "0"),
)
"""The reference: plain torch in fp32, without a cache and without a lever, updated by AdamW, whose moments other
optimizers keep in fewer bits. It runs under every lever, as Muon does not, which needs whole matrices in one process,
nor an average of weights, which `memory.swap` has no place for. torch's own attention: the eager one would take twenty
times as long.
"""
LAYER = ("--memory.order", "layer")
BLOCKS = ("--memory.recompute", "blocks")
BF16 = ("--model.precision", "bf16")
WAYS = (
    Way(
        "kernels",
        ("--model.kernels", "triton", "--model.attention", "auto", "--device", "cuda"),
        "Triton kernels and the fastest attention",
        needs="cuda",
    ),
    Way("compile", ("--memory.compile", "true"), "blocks compiled", needs="g++"),
    Way("bf16", BF16, "arithmetic in bf16"),
    Way(
        "stochastic-rounding",
        (*BF16, "--memory.trained", "bf16"),
        "trained weights in bf16, rounded stochastically",
    ),
    Way("matmul-int8", (*BF16, "--memory.matmul", "int8"), "trained linear layers multiply in int8"),
    Way(
        "matmul-fp8",
        (*BF16, "--memory.matmul", "fp8"),
        "trained linear layers multiply in float8, emulated",
        needs="torchao",
    ),
    Way("adamw8bit", ("--optim.kind", "adamw8bit"), "moments in 8 bits", needs="bitsandbytes"),
    Way("adamw8bit-ao", ("--optim.kind", "adamw8bit_ao"), "moments in 8 bits, torchao's", needs="torchao"),
    Way("adamw4bit-ao", ("--optim.kind", "adamw4bit_ao"), "moments in 4 bits", needs="torchao"),
    Way("nf4", ("--memory.frozen", "nf4"), "frozen layers in 4 bits", needs="bitsandbytes"),
    Way("int8", ("--memory.frozen", "int8"), "frozen layers in 8 bits"),
    Way("recompute", BLOCKS, "blocks computed twice"),
    Way("selective", ("--memory.recompute", "selective"), "wide rows computed twice"),
    Way("host-activations", ("--memory.keep_on", "host"), "what blocks keep for the backward pass in host memory"),
    Way("mlp-rows", ("--memory.mlp_rows", "64"), "MLPs by 64 rows"),
    Way("layer-order", LAYER, "block by block over all packs"),
    Way("fused-backward", (*LAYER, "--memory.gradients", "twice"), "each block updated as its gradient is complete"),
    Way("host-gradients", (*LAYER, "--memory.gradients", "host"), "gradients in host memory"),
    Way(
        "host-weights",
        (*LAYER, *BLOCKS, "--memory.frozen_on", "host", "--memory.swap", "0.5"),
        "weights in host memory",
    ),
    Way("host-states", ("--optim.states", "host"), "optimizer states in host memory"),
    Way(
        "packs",
        ("--data.packs_per_step", "4", "--data.lookahead", "16"),
        "four packs of 16 samples in place of one of 64",
    ),
    Way(
        "processes",
        ("--data.packs_per_step", "2", "--data.lookahead", "32"),
        "two processes (gloo), a pack of 32 samples each",
        processes=2,
    ),
    Way("cache", (), "from a cache of encoded pictures, as all paths above, and nothing more"),
)
"""Every fast path that the reference is compared with."""

FLOORS = {"loss": (0.03, 0.0), "gradient": (0.1, 0.0), "reconstruction": (0.0, 0.05), "overall": (0.0, 0.03)}
"""Quantity -> the narrowest half of a band: a share of the mean, and an absolute width. Seeds may agree by chance."""
OF_TRAINING = ("loss", "gradient")
"""Quantities that stand in a trial's own metrics; the others are scores."""
SEEDS = 10
"""The fewest seeds of the reference: a band from fewer would be too wide to tell anything."""
SURE = 0.9973
"""How likely a further seed of the reference ends in a band, as within three deviations that were known."""
RULE = (
    f"A band is where a further seed of the reference would end with {SURE:.1%} probability, from the mean and the "
    "spread of its seeds (Student's t, for a spread that few seeds tell), and at least ± 3 % of the loss, ± 10 % of "
    "the gradient, ± 0.05 of reconstruction, ± 0.03 of overall around the mean. The loss is the mean of the last "
    "quarter of the steps, the gradient the geometric mean of its norm before clipping there. A path runs with the "
    "seed 0 of the reference, and has to end inside all four bands."
)


@dataclass(frozen=True)
class Plan:
    """What a regression is to do."""

    runs: Path
    base: Path
    seeds: int
    steps: int
    count: int
    recipe: str = "proof/templates-1"
    """By default the one that teaches complete prompts soonest: a score near 0 would tell nothing."""


@dataclass(frozen=True)
class Band:
    """Where a quantity may end."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """NaN is in no band."""
        return self.low <= value <= self.high


def trials_of(plan: Plan, resolve: Resolve, ways: Sequence[Way] = WAYS) -> list[Trial]:
    """The reference's seeds, then every way that this machine can run, with the first seed."""
    reference = [trial_of(plan, resolve, REFERENCE, seed=seed) for seed in range(plan.seeds)]
    return reference + [
        trial_of(plan, resolve, way.name, way.options, processes=way.processes) for way in ways if not way.lacks()
    ]


def trial_of(
    plan: Plan,
    resolve: Resolve,
    name: str,
    options: Sequence[str] = (),
    *,
    seed: int = 0,
    processes: int = 1,
    program: tuple[str, ...] = COMMAND,
) -> Trial:
    """A trial of the reference with further options, or by another program: one that breaks it on purpose, to see that
    a band tells. The reference and such programs encode their pictures in every step; all others share caches.
    """
    folder = plan.runs / "regression" / name / f"seed-{seed}"
    steps = ["--steps", str(plan.steps), "--save_every", str(max(1, plan.steps // 2))]
    given = ["--config", plan.recipe, "--model.path", str(plan.base), "--device", "cpu", *PLAIN, *EQUAL, *SQUARE]
    given += options
    stages = [(stage, with_seed(config, seed, plan.steps)) for stage, config in resolve(given)]
    args = (*given, *steps, "--keep", "1", "--seed", str(seed), "--data.seed", str(seed))
    content = hash_of(plan.base)
    cached = name != REFERENCE and program == COMMAND
    return Trial(
        *(name, seed, folder, args, stages, plan.base, content, plan.count),
        processes=processes,
        program=program,
        cache=shared_cache(plan.runs, given, stages, content) if cached else None,
    )


def settings_of(plan: Plan) -> dict[str, Any]:
    """What the results of a regression say of its plan, but for the number of seeds."""
    return {"recipe": plan.recipe, "steps": plan.steps, "prompts": plan.count, "base": hash_of(plan.base)}


def collect(
    trials: Sequence[Trial], settings: Mapping[str, Any], earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The regression as plain values. Trials that are not finished are left out.

    Args:
        settings: as `settings_of` gives them.
        earlier: a regression of the same settings, whose mutants stay.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        if result := finished(trial):
            runs.setdefault(trial.name, []).append(
                {name: result[name] for name in ("seed", "seconds", *OF_TRAINING, "scores")}
                | {"environment": result.get("environment", {})}
            )
    return {
        **settings,
        "runs": runs,
        "lacking": {way.name: lack for way in WAYS if (lack := way.lacks())},
        **({"mutants": earlier["mutants"]} if earlier and "mutants" in earlier else {}),
    }


def bands(reference: Sequence[Mapping[str, Any]]) -> dict[str, Band]:
    """The band of each quantity, from the results of the reference's seeds."""
    found = {}
    for name, (relative, absolute) in FLOORS.items():
        values = [quantity(result, name) for result in reference]
        middle = mean(values)
        half = max(deviations(len(values)) * stdev(values), relative * abs(middle), absolute)
        found[name] = Band(middle - half, middle + half)
    return found


@cache
def deviations(count: int) -> float:
    """So many standard deviations of `count` values, to each side of their mean, a further value is with the
    probability SURE, where all are normally distributed.
    """
    # t = sqrt(f) tan(angle) has Student's distribution of f degrees of freedom: then angle has a density like
    # cos^(f-1), which is summed here; one quantile is no reason to depend on scipy.
    freedom, points = count - 1, 100_000
    angles = [(number + 0.5) / points * math.pi / 2 for number in range(points)]
    sums = list(accumulate(math.cos(angle) ** (freedom - 1) for angle in angles))
    angle = angles[bisect_left(sums, SURE * sums[-1])]
    return math.sqrt(freedom) * math.tan(angle) * math.sqrt(1 + 1 / count)


def outside(result: Mapping[str, Any], within: Mapping[str, Band]) -> list[str]:
    """The quantities of a result that are not in their bands."""
    return [name for name, band in within.items() if not band.holds(quantity(result, name))]


def quantity(result: Mapping[str, Any], name: str) -> float:
    """A mean over the last quarter of the steps, or a score. NaN where no such step had a gradient."""
    value = result[name] if name in OF_TRAINING else result["scores"][name]["value"]
    return float("nan") if value is None else float(value)
