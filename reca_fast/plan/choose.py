"""Levers that make a run fit, the cheapest in time first."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Literal

from reca_fast.config import RunConfig

from .plan import Plan

Goal = Literal["fits", "fastest", "cheapest"]
Levers = dict[str, Any]
"""Dotted names of settings and their values."""
Planner = Callable[[RunConfig], Plan]

NARROW: Levers = {"memory.trained": "bf16"}
LADDER: Sequence[tuple[str, Levers]] = (
    ("as it is", {}),
    ("recomputation of what is cheap", {"memory.recompute": "selective"}),
    ("recomputation of whole blocks", {"memory.recompute": "blocks"}),
    ("trained weights in bf16", {"memory.trained": "bf16"}),
    ("moments in 8 bits", {"optim.kind": "adamw8bit_ao"}),
    ("block by block, gradients in host memory", {"memory.order": "layer", "memory.gradients": "host"}),
    ("frozen weights in 4 bits", {"memory.frozen": "nf4"}),
    ("moments factored", {"optim.kind": "adafactor"}),
    ("a quarter of the trained weights in host memory", {"memory.swap": 0.25}),
    ("half of the trained weights in host memory", {"memory.swap": 0.5}),
    ("all trained weights in host memory", {"memory.swap": 1.0}),
    ("frozen weights in host memory", {"memory.frozen_on": "host"}),
)
"""Name of a rung and what it changes; every rung keeps what those before it changed. They are ordered by what they
cost: time first, then exactness.
"""


def rungs(config: RunConfig) -> Iterator[tuple[str, Levers, RunConfig]]:
    """Every rung that changes the configuration: name, all that was changed so far, and the configuration."""
    changed: Levers = {}
    for name, levers in LADDER:
        new = {key: value for key, value in levers.items() if _more(_get(config, key), value, key)}
        if levers and not new:
            continue
        changed |= new
        yield name, dict(changed), pulled(config, changed)


def pulled(config: RunConfig, levers: Levers) -> RunConfig:
    """A copy of a configuration with levers pulled."""
    config = deepcopy(config)
    for name, value in levers.items():
        *path, leaf = name.split(".")
        owner: Any = config
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, leaf, value)
    return config


def find(config: RunConfig, plan: Planner, goal: Goal) -> tuple[str, Levers, Plan] | None:
    """The rung that serves the goal; None when none fits.

    Args:
        plan: of a configuration.
        goal: fits takes the first rung that fits. fastest takes, of all that fit, the one with the shortest time for an
            image; cheapest is the same on a given number of GPUs.
    """
    best: tuple[str, Levers, Plan] | None = None
    for name, levers, candidate in rungs(config):
        found = plan(candidate)
        if not found.fits:
            continue
        if goal == "fits":
            return name, levers, found
        if best is None or _seconds_per_image(found) < _seconds_per_image(best[2]):
            best = name, levers, found
        elif _seconds_per_image(found) > 1.5 * _seconds_per_image(best[2]):
            break  # later rungs only cost more
    return best


def as_options(levers: Levers) -> str:
    """Levers as one would type them."""
    return " ".join(f"--{name} {value}" for name, value in levers.items())


def _seconds_per_image(plan: Plan) -> float:
    return plan.step_seconds / plan.images_per_step


def _get(config: RunConfig, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


ORDER: dict[str, Sequence[Any]] = {
    "memory.recompute": ("none", "selective", "budget", "blocks"),
    "memory.frozen": ("compute", "int8", "nf4"),
    "optim.kind": ("adamw", "adamw8bit", "paged_adamw8bit", "adamw8bit_ao", "adamw4bit_ao", "adafactor"),
}
"""Values of a setting, those that take less memory later."""


def _more(now: Any, value: Any, name: str) -> bool:
    """Whether a rung's value takes less memory than what the configuration has."""
    if name in ORDER:
        return ORDER[name].index(value) > ORDER[name].index(now)
    return bool(now != value) if not isinstance(value, float) else value > now
