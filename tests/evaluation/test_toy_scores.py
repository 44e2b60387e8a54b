"""Scores of a model in the toy world: shares of its pictures, and their mean."""

from dataclasses import asdict

import pytest

from reca_fast.evaluation.intervals import mean_of_shares, share
from reca_fast.evaluation.toy_scores import summarize
from reca_fast.toy import EXTRA, SUBTASKS, Found, prompts, reconstruction_of, scene_of


def test_scores_are_shares_and_the_overall_one_is_their_mean() -> None:
    """Of a model that draws one red circle, whatever it is asked."""
    circle = [Found("circle", "red", 0.5, 0.5, 60)]
    drawn = [(prompt, circle) for subtask in (*SUBTASKS, *EXTRA) for prompt in prompts(subtask, 20)]
    drawn += [(reconstruction_of(scene_of("validation", index)), circle) for index in range(30)]
    scores = summarize(drawn)
    assert scores["single"] == share(4, 20) and scores["two"] == scores["dense"] == share(0, 20)
    others_in_red = sum(prompt.requirement.things[0].colour == "red" for prompt in prompts("colour", 20))
    assert scores["colour"].value == 0 and scores["colour.colours_only"] == share(others_in_red, 20)
    assert scores["overall"] == mean_of_shares([scores[subtask] for subtask in SUBTASKS])
    assert scores["overall"].value == pytest.approx(0.2 / 6)
    lenient = {name for name in scores if "." in name}
    assert lenient == {
        *(f"{subtask}.colours_only" for subtask in ("colour", "attribution", "held_out", "dense", "reconstruction")),
        *("dense.colour_layout", "reconstruction.colour_layout"),
    }
    assert asdict(scores["single"]).keys() == {"value", "low", "high", "count"}
    assert "overall" not in summarize(drawn[:20]) and summarize([]) == {}
