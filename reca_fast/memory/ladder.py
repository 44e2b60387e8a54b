"""Levers in the order of what they cost: what to pull next where memory does not suffice."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from operator import attrgetter
from typing import Any

from reca_fast.config import RunConfig
from reca_fast.config.rules import check_run
from reca_fast.errors import UserError

Levers = dict[str, Any]
"""Dotted names of settings and their values."""

LADDER: Sequence[tuple[str, Levers]] = (
    ("as it is", {}),
    ("recomputation of what is cheap", {"memory.recompute": "selective"}),
    ("recomputation of whole blocks", {"memory.recompute": "blocks"}),
    ("trained weights in bf16", {"memory.trained": "bf16"}),
    ("moments in 8 bits", {"optim.kind": "adamw8bit"}),
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
        new = {key: value for key, value in levers.items() if _takes_less(value, attrgetter(key)(config), key)}
        if levers and not new:
            continue
        candidate = pulled(config, changed | new)
        if not _allowed(candidate):
            continue
        changed |= new
        yield name, dict(changed), candidate


def pulled(config: RunConfig, levers: Levers) -> RunConfig:
    """A copy of a configuration with levers pulled."""
    config = deepcopy(config)
    for name, value in levers.items():
        group, _, leaf = name.rpartition(".")
        setattr(attrgetter(group)(config), leaf, value)
    return config


def _allowed(config: RunConfig) -> bool:
    """Whether the rules on settings allow a configuration."""
    try:
        check_run(config, 1)
    except UserError:
        return False
    return True


def as_options(levers: Levers) -> str:
    """Levers as one would type them."""
    return " ".join(f"--{name} {value}" for name, value in levers.items())


ORDER: dict[str, Sequence[Any]] = {
    "memory.recompute": ("none", "selective", "budget", "blocks"),
    "memory.frozen": ("compute", "int8", "nf4"),
    "optim.kind": ("adamw", "muon", "adamw8bit", "paged_adamw8bit", "adamw8bit_ao", "adamw4bit_ao", "adafactor"),
}
"""Values of a setting, those that take less memory later."""


def _takes_less(value: Any, now: Any, name: str) -> bool:
    if name in ORDER:
        return ORDER[name].index(value) > ORDER[name].index(now)
    return bool(value > now if isinstance(value, float) else value != now)
