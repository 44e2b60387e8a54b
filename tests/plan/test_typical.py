"""The draw that stands for all in a plan."""

from typing import Any

import torch

from reca_fast.plan.typical import DRAWS, typical_batch


class Drawn:
    """A batch that costs what was drawn for it."""

    def __init__(self, draw: torch.Generator) -> None:
        self.cost = float(torch.rand((), generator=draw))


def cost(batch: Any) -> float:
    return batch.cost


def test_it_costs_about_the_mean() -> None:
    made: list[Drawn] = []

    def collate(draw: torch.Generator) -> Any:
        made.append(Drawn(draw))
        return made[-1]

    chosen: Any = typical_batch(collate, cost, 0)
    mean = sum(batch.cost for batch in made) / DRAWS
    assert len(made) == DRAWS and abs(chosen.cost - mean) == min(abs(batch.cost - mean) for batch in made)
    assert cost(typical_batch(collate, cost, 1)) != chosen.cost


def test_a_model_whose_costs_are_not_drawn_is_asked_twice_and_gives_the_first() -> None:
    made: list[Any] = []

    def collate(draw: torch.Generator) -> Any:
        made.append(object())
        return made[-1]

    assert typical_batch(collate, lambda batch: 1.0, 0) is made[0] and len(made) == 2
