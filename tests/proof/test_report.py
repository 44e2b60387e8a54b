"""The demo's report: one page that loads nothing and tells what was measured, and its JSON."""

import json

import pytest

from reca_fast.proof.effect import GATES, says_effect
from reca_fast.proof.report import Report, page, says_scores, summary, write_report
from tests.pages.reader import Page
from tests.proof.made_up import measured

NOTHING = {"single": 0.8, "two": 0.7}
LEARNT = NOTHING | {"colour": 0.6, "dense": 0.4, "reconstruction": 0.5, "held_out": 0.25}


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(
        before=measured(NOTHING),
        after=measured(LEARNT),
        losses=[(step, 1 / step) for step in range(1, 50)],
        model="OpenUni, <tiny>",
        recipe="toy",
        settings={"steps": 400, "optim": {"lr": 0.001}},
        facts={"parameters": "1.0 million"},
        environment={"torch": "2.13"},
        seeds={"seed": 7},
        seconds={"training": 71.26},
        commands=["make demo"],
    )


def test_the_page_is_whole_and_loads_nothing(report) -> None:
    read = Page(page(report))
    assert read.problems == [] and read.loads() == set()
    said = " ".join(text for _, text in read.text)
    assert "OpenUni, <tiny>" in said  # text, not a tag
    assert "40% of two-object prompts" in said and "make demo" in said and '"lr": 0.001' in said


def test_the_page_shows_the_yellow_circle_before_and_after(report) -> None:
    """Four of twenty prompts ask for it; of the model after training the first five pictures are right."""
    figures = Page(page(report)).all("img")
    asked = [figure for figure in figures if figure["alt"] == "a yellow circle"]
    assert len(asked) == 2 * sum(each.prompt.text == "a yellow circle" for each in report.before.of("held_out")) > 0
    assert all(figure["src"].startswith("data:image/png;base64,") for figure in figures)


def test_frames_tell_which_pictures_are_right(report) -> None:
    """Of the first twelve fully specified prompts eight come out right after training, of the pictures ten."""
    html = page(report)
    dense, again = html.partition("<h2>Fully specified")[2].partition("<h2>Drawn again")[::2]
    again = again.partition("<h2>The loss")[0]
    assert (dense.count('class="passed"'), dense.count('class="failed"')) == (8, 16)
    assert (again.count('class="passed"'), again.count('class="failed"')) == (10, 14)
    assert again.count("the original: ") == 12


def test_the_json_holds_scores_with_their_intervals(report, tmp_path) -> None:
    write_report(report, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == json.loads(json.dumps(summary(report)))
    wanted = {"single", "two", "count", "colour", "position", "attribution", "overall", "held_out", "dense"}
    for side, passing in (("before", NOTHING), ("after", LEARNT)):
        scores = written[side]
        assert wanted | {"reconstruction", "dense.colour_layout"} <= scores.keys()
        assert scores["dense"]["value"] == passing.get("dense", 0.0) and scores["dense"]["count"] == 20
        assert scores["dense"]["low"] <= scores["dense"]["value"] < scores["dense"]["high"]
    assert written["effect"]["shown"] and written["seeds"] == {"seed": 7} and written["loss"]["steps"] == 49
    assert (tmp_path / "report.html").read_text() == page(report)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.score)
def test_a_score_below_its_bound_is_named(gate) -> None:
    subtask = gate.score.partition(".")[0]
    short = measured(LEARNT | ({"colour": 0.4} if subtask == "overall" else {subtask: 0.0}))
    shown, sentence = says_effect(measured(NOTHING).scores, short.scores)
    assert not shown and f"{gate.words} {short.scores[gate.score].value:.2f}, wanted at least" in sentence
    assert says_effect(measured(NOTHING).scores, measured(LEARNT).scores)[0]


def test_what_reaches_its_bounds_and_was_higher_before_is_no_effect() -> None:
    shown, sentence = says_effect(measured(LEARNT | {"dense": 0.9}).scores, measured(LEARNT).scores)
    assert not shown and "fully specified prompts 0.40, wanted at least 0.08 and more than the 0.90 before" in sentence


def test_scores_stand_in_columns_on_a_terminal(report) -> None:
    lines = says_scores(report.before.scores, report.after.scores).split("\n")
    dense = next(line for line in lines if line.startswith("dense "))
    assert dense.split() == ["dense", "0.000", "(0.000", "to", "0.161)", "0.400", "(0.219", "to", "0.613)"]
    assert len(lines) == 1 + len(report.before.scores) and len({line.find("(") for line in lines[1:]}) == 1
