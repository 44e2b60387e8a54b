"""Strict and lenient scores, and rates with their intervals."""

import math

import pytest
from scipy.stats import binomtest

from reca_fast.toy import SUBTASKS, Found, Prompt, colour_layout, colours_only, parse, prompts, score, summarize
from reca_fast.toy.scores import mean_rate, place_of, rate, relation_of

RED = Found("circle", "red", 0.25, 0.5, 60)
BLUE = Found("square", "blue", 0.75, 0.55, 60)


def asked(text: str, subtask: str = "dense") -> Prompt:
    return Prompt(text, parse(text), subtask)


def verdicts(text: str, *found: Found) -> tuple[bool, bool, bool]:
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
    assert verdicts(text, *found) == expected


def test_places_and_relations_go_by_the_larger_distance() -> None:
    for x, y, relation in ((0.3, 0.1, "right of"), (-0.3, 0.1, "left of"), (0.1, 0.3, "below"), (0.1, -0.3, "above")):
        assert relation_of(Found("ring", "red", 0.5 + x, 0.5 + y, 9), Found("ring", "red", 0.5, 0.5, 9)) == relation
    for x, y, place in ((0.2, 0.5, "left"), (0.8, 0.6, "right"), (0.5, 0.2, "top"), (0.4, 0.8, "bottom")):
        assert place_of(Found("ring", "red", x, y, 9)) == place


@pytest.mark.parametrize(("passed", "count"), [(0, 200), (1, 200), (30, 50), (200, 200)])
def test_intervals_are_those_of_scipy(passed: int, count: int) -> None:
    mine = rate([True] * passed + [False] * (count - passed))
    theirs = binomtest(passed, count).proportion_ci(0.95, method="wilson")
    assert (mine.value, mine.count) == (passed / count, count)
    assert math.isclose(mine.low, theirs.low, abs_tol=1e-6) and math.isclose(mine.high, theirs.high, abs_tol=1e-6)


def test_the_overall_score_is_the_mean_of_six() -> None:
    drawn = [(prompt, [RED]) for subtask in (*SUBTASKS, "held_out", "dense") for prompt in prompts(subtask, 20)]
    drawn += [(Prompt("a red circle", parse("a red circle"), "reconstruction"), [RED])] * 10
    scores = summarize(drawn)
    six = [scores[subtask] for subtask in SUBTASKS]
    assert scores["single"].value == 4 / 20 and scores["two"].value == 0 and scores["reconstruction"].value == 1
    assert scores["colour"].value == 0 < scores["colour.colours_only"].value  # a red ring was asked for, say
    overall = scores["overall"]
    assert math.isclose(overall.value, sum(one.value for one in six) / 6) and overall.count == 120
    half = 1.959964 / 6 * math.sqrt(sum(one.value * (1 - one.value) / 20 for one in six))
    assert math.isclose(overall.high - overall.value, half) and overall == mean_rate(six)
    lenient = {name for name in scores if "." in name}
    assert lenient == {
        *(f"{subtask}.colours_only" for subtask in ("colour", "attribution", "held_out", "dense", "reconstruction")),
        *("dense.colour_layout", "reconstruction.colour_layout"),
    }
    assert "overall" not in summarize(drawn[:20]) and summarize([]) == {}
    with pytest.raises(ValueError, match="no picture"):
        rate([])
