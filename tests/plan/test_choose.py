"""Levers are pulled in the order of what they cost, and the share of swapped blocks is no larger than it has to be."""

from types import SimpleNamespace

import pytest

from reca_fast.config import ModelConfig, RunConfig
from reca_fast.plan import find

SIZES = {"fp32": 40.0, "bf16": 20.0}


def planner(gpu_gib: float):
    """A plan by a formula: trained weights, of which a share is away, 10 GiB of frozen ones and 5 GiB of the rest."""
    asked = []

    def plan(config: RunConfig) -> SimpleNamespace:
        memory = config.memory
        asked.append(memory.swap)
        frozen = 2.0 if memory.frozen == "nf4" else 10.0
        peak = SIZES[memory.trained] * (1 - memory.swap) + frozen + 5.0
        seconds = 1.0 + (memory.recompute != "none") + 4 * memory.swap
        fits = peak <= gpu_gib
        return SimpleNamespace(peak_gpu_gib=peak, gpu_gib=gpu_gib, fits=fits, step_seconds=seconds, images_per_step=1)

    return plan, asked


CONFIG = RunConfig(model=ModelConfig(precision="bf16"))
CONFIG.data.tasks.reca = 1.0


@pytest.mark.parametrize(("gib", "levers"), [(60, {}), (36, {"memory.trained": "bf16"})])
def test_the_first_rung_that_fits_is_taken(gib, levers) -> None:
    found = find(CONFIG, planner(gib)[0], "fits")
    assert found is not None and (found.levers == {} if not levers else found.levers.items() >= levers.items())
    assert "memory.swap" not in found.levers


@pytest.mark.parametrize("gib", [24, 20, 15, 11])
def test_the_share_of_swapped_blocks_is_the_least_that_fits(gib) -> None:
    plan, asked = planner(gib)
    found = find(CONFIG, plan, "fits")
    needed = 1 - (0.99 * gib - 7) / 20
    assert found is not None and found.plan.fits
    assert needed <= found.levers["memory.swap"] <= needed + 0.01
    assert len(asked) < 13


def test_the_fastest_that_fits_may_be_an_earlier_rung() -> None:
    found = find(CONFIG, planner(100)[0], "fastest")
    assert found is not None and found.levers == {}


def test_none_is_found_where_nothing_fits() -> None:
    assert find(CONFIG, planner(1)[0], "fits") is None


def test_what_cannot_fit_is_not_planned() -> None:
    plan, asked = planner(100)
    assert find(CONFIG, plan, "fits", may_fit=lambda config: config.memory.swap == 1.0) is not None
    assert asked[0] == 1.0
