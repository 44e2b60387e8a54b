"""Whether a picture shows what a prompt asks for, and how often pictures do.

Every score demands the exact number of things. The strict one then demands everything that the prompt says; the lenient
ones overlook shapes, because small models learn colours first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from .captions import Requirement, Wanted
from .detector import Found
from .prompts import RECONSTRUCTION, SUBTASKS, Prompt
from .world import FEWEST, MOST, PLACES

Z = 1.959964
"""95 % of a normal distribution lie within so many standard deviations."""


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


@dataclass(frozen=True)
class Rate:
    """A share of pictures with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int  # of pictures


def rate(passed: Sequence[bool]) -> Rate:
    """The share of those that passed, with Wilson's interval.

    Raises:
        ValueError: there are none.
    """
    count, value = len(passed), sum(passed) / len(passed) if passed else math.nan
    if not count:
        raise ValueError("no picture, no rate")
    middle = (value + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(value * (1 - value) / count + Z**2 / (4 * count**2))
    return Rate(value, max(0.0, middle - half), min(1.0, middle + half), count)


def mean_rate(rates: Sequence[Rate]) -> Rate:
    """The mean of several rates, each counting equally, with the normal approximation of its interval.

    A rate of 0 or 1 takes part with no variance, as the estimate says.
    """
    value = sum(rate.value for rate in rates) / len(rates)
    half = Z / len(rates) * math.sqrt(sum(rate.value * (1 - rate.value) / rate.count for rate in rates))
    return Rate(value, max(0.0, value - half), min(1.0, value + half), sum(rate.count for rate in rates))


LENIENT: Mapping[str, tuple[Callable[[Prompt, Sequence[Found]], bool], tuple[str, ...]]] = {
    "colours_only": (colours_only, ("colour", "attribution", "held_out", "dense", RECONSTRUCTION)),
    "colour_layout": (colour_layout, ("dense", RECONSTRUCTION)),
}
"""Lenient score -> how it judges, and the subtasks whose prompts it says something about."""


def summarize(drawn: Sequence[tuple[Prompt, Sequence[Found]]]) -> dict[str, Rate]:
    """The scores of a model from its pictures: each prompt with what was found in its picture.

    Returns:
        A strict rate for each subtask that was drawn, under its name; `overall`, their mean, where all of SUBTASKS were
        drawn; and the lenient rates under names such as `dense.colours_only` and `dense.colour_layout`.
    """
    by_subtask: dict[str, list[tuple[Prompt, Sequence[Found]]]] = {}
    for prompt, found in drawn:
        by_subtask.setdefault(prompt.subtask, []).append((prompt, found))
    rates = {subtask: rate([score(*one) for one in some]) for subtask, some in by_subtask.items()}
    if all(subtask in rates for subtask in SUBTASKS):
        rates["overall"] = mean_rate([rates[subtask] for subtask in SUBTASKS])
    for name, (judge, subtasks) in LENIENT.items():
        for subtask in subtasks:
            if subtask in by_subtask:
                rates[f"{subtask}.{name}"] = rate([judge(*one) for one in by_subtask[subtask]])
    return rates
