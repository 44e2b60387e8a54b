"""Whether a picture shows what a prompt asks for. `evaluation/toy_scores.py` counts how often pictures do.

Every score demands the exact number of things. The strict one then demands everything that the prompt says; the lenient
ones overlook shapes, because small models learn colours first.
"""

import math
from collections.abc import Callable, Sequence
from itertools import permutations

from .captions import Requirement, Wanted
from .detector import Found
from .prompts import RECONSTRUCTION, Prompt
from .world import FEWEST, MOST, PLACES


def score(prompt: Prompt, found: Sequence[Found]) -> bool:
    """Whether a picture shows exactly what the prompt says: number, shapes, colours and relation.

    Two things stand to each other in the direction in which they are farther apart.
    """
    return satisfies(prompt.requirement, found)


def colours_only(prompt: Prompt, found: Sequence[Found]) -> bool:
    """Whether a picture has as many things as the prompt says, in its colours. Shapes and places are overlooked."""
    return satisfies(prompt.requirement, found, shapes=False, places=False)


def colour_layout(prompt: Prompt, found: Sequence[Found]) -> bool:
    """Whether a picture has as many things as the prompt says, in its colours and places. Shapes are overlooked."""
    return satisfies(prompt.requirement, found, shapes=False)


def satisfies(requirement: Requirement, found: Sequence[Found], shapes: bool = True, places: bool = True) -> bool:
    """Whether the things that were found are those that a text asks for.

    Args:
        requirement: what the text asks for.
        found: every thing in the picture.
        shapes: whether their shapes count.
        places: whether the place of one thing, or the relation of two, counts.
    """
    wanted = requirement.things
    fewest, most = (requirement.number, requirement.number) if requirement.number else (FEWEST, MOST)
    if not fewest <= len(found) <= most:
        return False
    if len(wanted) == 1:
        is_there = not (places and requirement.relation) or place_of(found[0]) == requirement.relation
        return is_there and all(_is(thing, wanted[0], shapes) for thing in found)
    return any(
        _is(first, wanted[0], shapes)
        and _is(second, wanted[1], shapes)
        and not (places and requirement.relation and relation_of(first, second) != requirement.relation)
        for first, second in permutations(found, 2)
    )


def _is(thing: Found, wanted: Wanted, shapes: bool) -> bool:
    return wanted.colour in (None, thing.colour) and not (shapes and thing.shape != wanted.shape)


def relation_of(first: Found, second: Found) -> str:
    """How one thing stands to another, in the direction in which they are farther apart."""
    right, down = first.x - second.x, first.y - second.y
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def place_of(thing: Found) -> str:
    """The place nearest to a thing: left, right, top or bottom."""
    return min(PLACES, key=lambda place: math.dist(PLACES[place], (thing.x, thing.y)))


LENIENT: dict[str, tuple[Callable[[Prompt, Sequence[Found]], bool], tuple[str, ...]]] = {
    "colours_only": (colours_only, ("colour", "attribution", "held_out", "dense", RECONSTRUCTION)),
    "colour_layout": (colour_layout, ("dense", RECONSTRUCTION)),
}
"""Lenient score -> how it judges, and the subtasks whose prompts it says something about."""


def verdicts(prompt: Prompt, found: Sequence[Found]) -> dict[str, bool]:
    """Every score of one picture: the strict one under the name of its subtask, the lenient ones that say something of
    this subtask under names like `dense.colours_only` and `dense.colour_layout`.
    """
    lenient = {
        f"{prompt.subtask}.{name}": judge(prompt, found)
        for name, (judge, subtasks) in LENIENT.items()
        if prompt.subtask in subtasks
    }
    return {prompt.subtask: score(prompt, found), **lenient}
