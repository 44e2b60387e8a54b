"""The levers that serve a goal."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from reca_fast.config import RunConfig
from reca_fast.memory.ladder import Levers, pulled, rungs

from .plan import Plan

Goal = Literal["fits", "fastest", "cheapest"]
Planner = Callable[[RunConfig], Plan]
SWAP = "memory.swap"
ROOM = 0.01
"""Share of the GPU's memory that a share of swapped blocks is chosen to leave."""


class Found(NamedTuple):
    """Levers that fit."""

    name: str  # of the rung
    levers: Levers
    plan: Plan


def find(
    config: RunConfig, plan: Planner, goal: Goal, may_fit: Callable[[RunConfig], bool] = lambda _: True
) -> Found | None:
    """The rung that serves the goal; None when none fits.

    The ladder knows a few shares of swapped blocks. Where one of them fits and the one before did not, the smallest
    share that fits is sought between them.

    Args:
        plan: of a configuration.
        goal: fits takes the first rung that fits. fastest takes, of all that fit, the one with the shortest time for an
            image; cheapest is the same on a given number of GPUs.
        may_fit: whether it is worth a plan; says no at once where what a run keeps in any case is too much.
    """
    best: Found | None = None
    before: Found | None = None
    for name, levers, candidate in rungs(config):
        if not may_fit(candidate):
            continue
        found = Found(name, levers, plan(candidate))
        if found.plan.fits and SWAP in levers:
            found = _with_least_swap(config, plan, found, before)
        before = found
        if not found.plan.fits:
            continue
        if goal == "fits":
            return found
        if best is None or _seconds_per_image(found.plan) < _seconds_per_image(best.plan):
            best = found
        elif _seconds_per_image(found.plan) > 1.5 * _seconds_per_image(best.plan):
            break  # later rungs only cost more
    return best


def _with_least_swap(config: RunConfig, plan: Planner, fits: Found, before: Found | None) -> Found:
    """The smallest share of swapped blocks that fits: memory falls evenly with it, so two plans tell it, and a third
    one proves it.
    """
    if before is None or before.plan.fits:
        return fits
    most, least = fits.levers[SWAP], before.levers.get(SWAP, 0.0)
    saved = (before.plan.peak_gpu_gib - fits.plan.peak_gpu_gib) / (most - least)
    room = (1 - ROOM) * fits.plan.gpu_gib - fits.plan.peak_gpu_gib
    share = math.ceil(100 * (most - room / saved)) / 100 if saved > 0 else most
    if not least < share < most:
        return fits
    levers = fits.levers | {SWAP: share}
    smaller = Found(f"{share:.0%} of the trained weights in host memory", levers, plan(pulled(config, levers)))
    return smaller if smaller.plan.fits else fits


def _seconds_per_image(plan: Plan) -> float:
    return plan.step_seconds / plan.images_per_step
