"""Prompts of the toy world's GenEval: always the same, and each asks what its subtask is for."""

from collections import Counter

import pytest

from reca_fast.errors import UserError
from reca_fast.toy import EXTRA, SUBTASKS, WORDS, Prompt, parse, prompts, reconstruction_of, scene_of
from reca_fast.toy.world import DOMINANT, HELD_OUT

DIFFERENT = {
    "single": 5,
    "two": 20,
    "count": 15,
    "colour": 20,
    "position": 80,
    "attribution": 200,
    "held_out": 5,
    "dense": 200,
}

RECORDED = {
    "single": "a triangle",
    "two": "a ring and a square",
    "count": "three triangles",
    "colour": "a yellow triangle",
    "position": "a triangle left of a square",
    "attribution": "a blue triangle and a yellow ring",
    "held_out": "a cyan cross",
    "dense": "a magenta triangle above a cyan ring",
}
"""The first prompt of every subtask."""


def every_prompt() -> list[Prompt]:
    return [prompt for subtask in (*SUBTASKS, *EXTRA) for prompt in prompts(subtask)]


@pytest.mark.parametrize("subtask", [*SUBTASKS, *EXTRA])
def test_prompts_are_different_or_repeated_evenly(subtask: str) -> None:
    texts = [prompt.text for prompt in prompts(subtask)]
    assert texts == [prompt.text for prompt in prompts(subtask, 300)[:200]]
    counts = Counter(texts)
    assert len(texts) == 200 and len(counts) == DIFFERENT[subtask]
    assert max(counts.values()) - min(counts.values()) <= 1


def test_recorded_prompts_are_asked_again() -> None:
    """Scores of two releases are of the same prompts."""
    assert {subtask: prompts(subtask, 1)[0].text for subtask in (*SUBTASKS, *EXTRA)} == RECORDED


def test_a_prompt_requires_what_its_text_says() -> None:
    for prompt in every_prompt():
        assert prompt.requirement == parse(prompt.text)
        assert set(prompt.text.split()) <= set(WORDS)


def test_each_subtask_asks_for_what_it_is_about() -> None:
    for prompt in every_prompt():
        asked = prompt.requirement
        is_coloured = prompt.subtask in ("colour", "attribution", "held_out", "dense")
        has_two = prompt.subtask in ("two", "position", "attribution", "dense")
        assert len({thing.shape for thing in asked.things}) == len(asked.things) == 1 + has_two
        assert bool(asked.relation) == (prompt.subtask in ("position", "dense"))
        assert asked.number in ((2, 3, 4) if prompt.subtask == "count" else (1 + has_two,))
        assert all((thing.colour is not None) == is_coloured for thing in asked.things)
        for thing in asked.things if is_coloured else ():
            assert (thing.colour == HELD_OUT[thing.shape]) == (prompt.subtask == "held_out")
            assert thing.colour != DOMINANT[thing.shape]
        assert not (is_coloured and has_two) or asked.things[0].colour != asked.things[1].colour


def test_a_reconstruction_has_to_show_the_whole_scene() -> None:
    for index in range(50):
        prompt = reconstruction_of(scene_of("validation", index))
        assert prompt.subtask == "reconstruction" and all(thing.colour for thing in prompt.requirement.things)
        assert prompt.requirement.number == len(scene_of("validation", index).things)


def test_an_unknown_subtask_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no subtask 'color', only single, .*Did you mean 'colour'"):
        prompts("color")
