"""The toy world's own small GenEval: prompts for each skill, always the same ones, each with what it requires.

In `colour`, `attribution` and `dense` the combinations of shape and colour are rare ones: a base that draws every
circle red gains nothing by it, and nothing is asked that post-training does not show. `held_out` asks for the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

from reca_fast.errors import UserError, did_you_mean

from .captions import NUMBERS, Requirement, Wanted, canonical, requirement_of
from .world import HELD_OUT, RELATIONS, SHAPES, Scene, numbers, rare_colours

SUBTASKS = ("single", "two", "count", "colour", "position", "attribution")
"""Those whose mean is the overall score."""
EXTRA = ("held_out", "dense")
RECONSTRUCTION = "reconstruction"
"""The subtask of pictures that are drawn again from what the understanding saw, without any text of what they show."""


@dataclass(frozen=True)
class Prompt:
    """A text to draw, and what the picture has to show."""

    text: str
    requirement: Requirement
    subtask: str


def prompts(subtask: str, count: int = 200) -> list[Prompt]:
    """So many prompts of a subtask, always the same: all different, or where there are fewer each equally often.

    - `single`: "a circle"; `two`: "a circle and a ring"; `count`: "three rings"; `position`: "a ring above a cross".
    - `colour`: "a green circle"; `attribution`: "a green circle and a red ring". The combinations are rare.
    - `held_out`: "a yellow circle"; `dense`: "a green circle left of a red ring", rare combinations again.

    Raises:
        UserError: there is no such subtask.
    """
    if subtask not in ASKED:
        known = ", ".join(ASKED)
        raise UserError(f"There is no subtask {subtask!r}, only {known}.{did_you_mean(subtask, ASKED)}")
    asked = list(ASKED[subtask]())
    order = numbers("prompts", subtask, 0).permutation(len(asked))
    chosen = [asked[order[number % len(asked)]] for number in range(count)]
    return [Prompt(requirement.text, requirement, subtask) for requirement in chosen]


def reconstruction_of(scene: Scene) -> Prompt:
    """What a picture has to show that is drawn again from a picture of this scene: all that its dense caption tells."""
    return Prompt(canonical(scene), requirement_of(scene), RECONSTRUCTION)


def _single() -> Iterator[Requirement]:
    for shape in SHAPES:
        yield Requirement((Wanted(shape),))


def _two() -> Iterator[Requirement]:
    for first, second in permutations(SHAPES, 2):
        yield Requirement((Wanted(first), Wanted(second)), "", 2)


def _count() -> Iterator[Requirement]:
    for shape, number in product(SHAPES, NUMBERS):
        yield Requirement((Wanted(shape),), "", number)


def _colour() -> Iterator[Requirement]:
    for shape in SHAPES:
        for colour in rare_colours(shape):
            yield Requirement((Wanted(shape, colour),))


def _position() -> Iterator[Requirement]:
    for two, relation in product(_two(), RELATIONS):
        yield Requirement(two.things, relation, 2)


def _attribution() -> Iterator[Requirement]:
    for first, second in permutations(SHAPES, 2):
        for one, other in product(rare_colours(first), rare_colours(second)):
            if one != other:
                yield Requirement((Wanted(first, one), Wanted(second, other)), "", 2)


def _held_out() -> Iterator[Requirement]:
    for shape, colour in HELD_OUT.items():
        yield Requirement((Wanted(shape, colour),))


def _dense() -> Iterator[Requirement]:
    for two, relation in product(_attribution(), RELATIONS):
        yield Requirement(two.things, relation, 2)


ASKED = {
    "single": _single,
    "two": _two,
    "count": _count,
    "colour": _colour,
    "position": _position,
    "attribution": _attribution,
    "held_out": _held_out,
    "dense": _dense,
}
"""Subtask -> everything that it may ask."""
