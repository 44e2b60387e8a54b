"""The levers that serve a goal."""

from collections.abc import Callable
from typing import Literal

from reca_fast.config import RunConfig
from reca_fast.memory.ladder import Levers, rungs

from .plan import Plan

Goal = Literal["fits", "fastest", "cheapest"]
Planner = Callable[[RunConfig], Plan]


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


def _seconds_per_image(plan: Plan) -> float:
    return plan.step_seconds / plan.images_per_step
