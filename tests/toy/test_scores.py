"""Strict and lenient scores: what each demands of a picture."""

import pytest

from reca_fast.toy import Found, Prompt, colour_layout, colours_only, parse, score, verdicts
from reca_fast.toy.scores import place_of, relation_of

RED = Found("circle", "red", 0.25, 0.5, 60)
BLUE = Found("square", "blue", 0.75, 0.55, 60)


def asked(text: str, subtask: str = "dense") -> Prompt:
    return Prompt(text, parse(text), subtask)


def judged(text: str, *found: Found) -> tuple[bool, bool, bool]:
    """(strict, colours only, colour layout)."""
    prompt = asked(text)
    return score(prompt, found), colours_only(prompt, found), colour_layout(prompt, found)


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("a red circle left of a blue square", [RED, BLUE], (True, True, True)),
        ("a blue square right of a red circle", [RED, BLUE], (True, True, True)),
        ("a red circle right of a blue square", [RED, BLUE], (False, True, False)),
        ("a red circle above a blue square", [RED, BLUE], (False, True, False)),  # farther apart sideways
        ("a red square left of a blue circle", [RED, BLUE], (False, True, True)),
        ("a blue circle left of a red square", [RED, BLUE], (False, True, False)),
        ("a red circle and a blue square", [BLUE, RED], (True, True, True)),
        ("a blue circle and a red square", [RED, BLUE], (False, True, True)),
        ("a red circle and a green square", [RED, BLUE], (False, False, False)),
        ("a circle and a square", [RED, BLUE], (True, True, True)),
        ("a circle and a ring", [RED, BLUE], (False, True, True)),
        ("a red circle", [RED], (True, True, True)),
        ("a red circle", [RED, BLUE], (False, False, False)),
        ("a red circle", [], (False, False, False)),
        ("a red circle at the left", [RED], (True, True, True)),
        ("a red circle at the top", [RED], (False, True, False)),
        ("a circle", [Found(None, "red", 0.5, 0.5, 60)], (False, True, True)),
        ("two red circles", [RED, RED], (True, True, True)),
        ("two red circles", [RED, BLUE], (False, False, False)),
        ("three circles", [RED, RED], (False, False, False)),
        ("circles", [RED, RED, RED], (True, True, True)),
        ("circles", [RED], (False, False, False)),
        ("circles", [RED] * 5, (False, False, False)),
    ],
)
def test_scores_demand_what_they_say(text: str, found: list[Found], expected: tuple[bool, bool, bool]) -> None:
    assert judged(text, *found) == expected


def test_places_and_relations_go_by_the_larger_distance() -> None:
    for x, y, relation in ((0.3, 0.1, "right of"), (-0.3, 0.1, "left of"), (0.1, 0.3, "below"), (0.1, -0.3, "above")):
        assert relation_of(Found("ring", "red", 0.5 + x, 0.5 + y, 9), Found("ring", "red", 0.5, 0.5, 9)) == relation
    for x, y, place in ((0.2, 0.5, "left"), (0.8, 0.6, "right"), (0.5, 0.2, "top"), (0.4, 0.8, "bottom")):
        assert place_of(Found("ring", "red", x, y, 9)) == place


def test_each_picture_has_the_scores_of_its_subtask() -> None:
    text = "a red square left of a blue circle"
    for subtask, lenient in (
        ("dense", ("colours_only", "colour_layout")),
        ("reconstruction", ("colours_only", "colour_layout")),
        ("attribution", ("colours_only",)),
        ("position", ()),
    ):
        expected = {subtask: False, **{f"{subtask}.{name}": True for name in lenient}}
        assert verdicts(asked(text, subtask), [RED, BLUE]) == expected
