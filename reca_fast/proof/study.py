"""The ablations of RECA on the toy world: arms with several seeds each, from a plan to plain results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reca_fast.config import RunConfig
from reca_fast.errors import UserError
from reca_fast.evaluation.intervals import Estimate
from reca_fast.schema import from_dict

from .arms import Arm
from .caches import SQUARE, shared_cache
from .environment import hash_of
from .trial import Stages, Trial, finished

Resolve = Callable[[Sequence[str]], Stages]
"""Settings of every stage of a command line of `train`: the command line's own reader."""


SAMPLES = 64
EQUAL = ("--data.lookahead", str(SAMPLES), "--data.tokens_per_pack", "32768")
"""So many samples in every step of every arm: a pack takes all that are looked at, as far as its tokens go."""


@dataclass(frozen=True)
class Plan:
    """What a study is to do, as the user asks for it."""

    runs: Path
    """A folder for every arm and seed is made in it, and one for the caches that they share."""
    bases: Mapping[str, Path]
    """Name of a base -> its checkpoint folder."""
    seeds: int
    steps: int
    """Of every arm, those of its stages together."""
    count: int
    """Prompts for each subtask."""


def trials_of(arm: Arm, plan: Plan, resolve: Resolve) -> list[Trial]:
    """A trial for each seed of an arm. Every arm takes as many steps, of as many samples each.

    Raises:
        UserError: the steps cannot be shared by the arm's stages, or the base cannot be read.
    """
    base = plan.bases[arm.base]
    given = ["--config", arm.recipe, "--model.path", str(base), "--device", "cpu", *EQUAL, *SQUARE]
    stages = resolve(given)
    if plan.steps % len(stages):
        raise UserError(
            f"{arm.name} has {len(stages)} stages, which cannot share {plan.steps} steps; choose another --steps."
        )
    steps = plan.steps // len(stages)
    own = ["--steps", str(steps), "--save_every", str(max(1, steps // 4)), "--keep", "1"]
    content = hash_of(base)
    cache = shared_cache(plan.runs, given, stages, content) if arm.trains else None
    trials = []
    for seed in range(plan.seeds):
        folder = plan.runs / arm.name / f"seed-{seed}"
        trials.append(
            Trial(
                name=arm.name,
                seed=seed,
                folder=folder,
                args=(*given, *own, "--seed", str(seed), "--data.seed", str(seed)),
                stages=[(name, with_seed(config, seed, steps)) for name, config in stages],
                base=base,
                content=content,
                count=plan.count,
                trains=arm.trains,
                says=arm.says,
                cache=cache,
            )
        )
    return trials


def with_seed(config: RunConfig, seed: int, steps: int) -> RunConfig:
    """The settings of a run with another seed, of its noise and of its data alike, and so many steps."""
    return replace(config, seed=seed, steps=steps, data=replace(config.data, seed=seed))


def settings_of(plan: Plan, base: str) -> dict[str, Any]:
    """What the results of a study from the base of that name say of its plan."""
    return {
        "steps": plan.steps,
        "prompts": plan.count,
        "seeds": list(range(plan.seeds)),
        "bases": {base: hash_of(plan.bases[base])},
    }


def collect(
    trials: Mapping[Arm, Sequence[Trial]], settings: Mapping[str, Any], earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A study as plain values: what it did, and the scores of every arm and seed, with where each was run. Arms with a
    trial that is not finished, or was finished with other settings, are left out.

    Args:
        trials: of every arm.
        settings: as `settings_of` gives them.
        earlier: a study of the same settings, maybe of another machine. Its arms stay where these trials have none, as
            long as they were asked for the same.
    """
    arms = {}
    for arm, its in trials.items():
        results = [_finished_as_asked(trial) for trial in its]
        kept = earlier["arms"].get(arm.name, {"seeds": []})["seeds"] if earlier else []
        if not all(results) and [seed.get("asked") for seed in kept] == [trial.digest() for trial in its]:
            results = kept
        if results and all(results):
            arms[arm.name] = {**asdict(arm), "seeds": results}
    return {**settings, "arms": arms}


def _finished_as_asked(trial: Trial) -> dict[str, Any] | None:
    try:
        return finished(trial)
    except UserError:  # its folder holds a trial of other settings
        return None


def scores_of(arm: Mapping[str, Any], score: str) -> list[Estimate]:
    """A score of each seed of an arm, as it stands in a study's JSON; `loss` is the mean of the last quarter. None of
    an arm that does not have it.

    Raises:
        UserError: the JSON holds something else.
    """
    found = []
    for seed in arm["seeds"]:
        if score == "loss":
            value = seed.get("loss")
            found += [] if value is None else [Estimate(value, value, value, 1)]
        elif score in seed["scores"]:
            found.append(from_dict(Estimate, seed["scores"][score], f"{score} of a study"))
    return found
