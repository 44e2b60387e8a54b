"""The demo's report: one HTML page that tells what RECA changed, and the same as JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reca_fast.evaluation.intervals import Estimate
from reca_fast.pages import embed, render
from reca_fast.toy import EXTRA, RECONSTRUCTION, SIDE, SUBTASKS, prompts

from .drawings import interval_bars, loss_chart, score_chart, smoothed
from .effect import GATES, says_effect
from .measure import Drawn, Measured

TEMPLATE = Path(__file__).parent / "report.html"
ASKED_FOR = "a yellow circle"
"""The prompt of the first grid: a combination that no picture which the model learned to draw has ever shown."""
COLUMNS = 8
PAIRS = 12
STRICT = (*SUBTASKS, "overall", *EXTRA, RECONSTRUCTION)
CHARTED = {
    "overall": "overall",
    "fully specified": "dense",
    "colours and places": "dense.colour_layout",
    "reconstruction": "reconstruction",
    "one rare colour": "colour",
    "held-out combination": "held_out",
}
"""Words in the chart -> score."""
KINDS = {"colours_only": "colours", "colour_layout": "colours and places"}
"""Lenient score -> what of a picture it looks at."""
DETECTOR = (
    "Nothing is learned in it. A pixel that is far from grey has the nearest of six colours; neighbouring pixels of a "
    "colour are a thing, unless they are few; its shape is that of the most similar of 1,920 drawn templates, or none "
    "where even that one is too different. Two things stand to each other in the direction in which they are farther "
    "apart.",
    "A strict score asks for the exact number of things, and each of them with the shape, colour and place that the "
    "prompt names. The lenient ones overlook shapes, and were defined before the runs. Of true pictures of this world "
    "99.9 % pass with their own description, and not one of 2,000 with that of another scene.",
)
CAVEATS = (
    f"This is a toy: pictures of {SIDE} x {SIDE} pixels, five shapes, six colours, and a model thousands of times "
    "smaller than BAGEL. It shows what the method does and that this code does it, not how much a real model gains.",
    "The understanding is as good as an oracle's: it was taught complete descriptions of pictures of every "
    "combination, which no real model has of its pictures. It is frozen; only what draws is trained.",
    "The recipe (optimizer, learning rate, instructions, guidance) was chosen on this toy world, with these scores in "
    "view. The bounds above were set before.",
    "Training on complete captions can do as well here, because captions can be complete in so small a world. RECA "
    "gets there without any caption; that is what this page shows. The study compares them: reca-fast study.",
    "The seeds change the order of the pictures, the noise and the times of post-training. The base is one checkpoint.",
)
NEXT = (
    "reca-fast plan --config bagel --gpus 1                   # what it will take, before anything is rented",
    "reca-fast train --config bagel --model.path BAGEL-7B-MoT --data.source FOLDER_OF_PICTURES --out runs/bagel",
    "reca-fast export runs/bagel BAGEL-reca",
    "reca-fast study                                          # the paper's ablations on this toy: an hour, two cores",
)


@dataclass(frozen=True)
class Report:
    """All that a report tells."""

    before: Measured
    after: Measured
    losses: Sequence[tuple[int, float]]
    """(step, loss) of every step that was logged and not skipped."""
    model: str
    """The model in a few words: its architecture and size."""
    recipe: str
    """The recipe's name."""
    settings: Mapping[str, Any]
    """Every setting of the run, nested like a recipe."""
    facts: Mapping[str, str]
    """What a reader should know about the recipe, in words."""
    environment: Mapping[str, str]
    seeds: Mapping[str, int]
    seconds: Mapping[str, float]
    """Stage -> how long it took."""
    commands: Sequence[str]
    """What makes this report again."""
    caveats: Sequence[str] = field(default=CAVEATS)


def summary(report: Report) -> dict[str, Any]:
    """The report as plain values: what was measured `before` and `after`, with intervals, and how it came about."""
    shown, sentence = says_effect(report.before.scores, report.after.scores)
    losses = smoothed([loss for _, loss in report.losses])
    return {
        "effect": {"shown": shown, "says": sentence, "gates": _gates(report)},
        "before": _side(report.before),
        "after": _side(report.after),
        "loss": {"steps": report.losses[-1][0], "first": losses[0], "last": losses[-1]},
        "model": report.model,
        "recipe": report.recipe,
        "settings": report.settings,
        "facts": report.facts,
        "seeds": report.seeds,
        "seconds": {name: round(seconds, 1) for name, seconds in report.seconds.items()},
        "environment": report.environment,
        "commands": report.commands,
        "caveats": report.caveats,
    }


def _side(measured: Measured) -> dict[str, Any]:
    """The scores under their own names, and beside them how they were measured."""
    told = measured.report()
    return {**told.pop("scores"), **told}


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.html` and `report.json` into a folder that exists; the first one's path."""
    (folder / "report.json").write_text(json.dumps(summary(report), indent=1) + "\n")
    html = folder / "report.html"
    html.write_text(page(report), encoding="utf-8")
    return html


def page(report: Report) -> str:
    """The HTML of the report; a file of it needs nothing else."""
    before, after = report.before.scores, report.after.scores
    shown, headline = says_effect(before, after)
    asked = [[d for d in side.of("held_out") if d.prompt.text == ASKED_FOR] for side in (report.before, report.after)]
    psnr = [side.psnr for side in (report.before, report.after)]
    return render(
        TEMPLATE,
        title="RECA in minutes: what changed",
        shown=shown,
        headline=headline,
        model=report.model,
        columns=COLUMNS,
        count=after["dense"].count,
        asked={
            "prompt": ASKED_FOR,
            "about": "Nobody has ever shown the generator one. In the pictures that it learned to draw from, circles "
            "are red nearly always, and never yellow; post-training shows it none either.",
            "before": _marks(asked[0]),
            "after": _marks(asked[1]),
        },
        chart=score_chart({words: (before[name], after[name]) for words, name in CHARTED.items()}),
        tables=[
            {
                "title": "Strict",
                "about": "Everything that the prompt says has to be there. Overall is the mean of the first six.",
                "rows": _rows(report, STRICT),
            },
            {
                "title": "Lenient",
                "about": "Shapes are overlooked: small models learn colours first.",
                "rows": _rows(report, [name for name in after if "." in name]),
            },
        ],
        gates=_gates(report),
        dense=[
            {"prompt": first.prompt.text, "marks": _marks([first, second])} for first, second in _pairs(report, "dense")
        ],
        again=[
            {"prompt": "", "marks": [*_original(first), *_marks([first, second])]}
            for first, second in _pairs(report, RECONSTRUCTION)
        ],
        psnr=f" Mean PSNR: {psnr[0].value:.1f} dB before, {psnr[1].value:.1f} dB after." if psnr[0] and psnr[1] else "",
        loss=loss_chart(report.losses),
        facts=report.facts,
        caveats=report.caveats,
        settings=json.dumps(report.settings, indent=1),
        detector=DETECTOR,
        commands=report.commands,
        next=NEXT,
        environment={**report.environment, "seconds": _times(report.seconds)},
    )


def _gates(report: Report) -> list[dict[str, Any]]:
    """What had to be seen, and whether it was."""
    before, after = report.before.scores, report.after.scores
    return [
        {
            "score": gate.score,
            "words": gate.words,
            "bound": gate.bound(before),
            "before": before[gate.score].value,
            "after": after[gate.score].value,
            "met": gate.is_met(before, after),
        }
        for gate in GATES
    ]


def says_scores(before: Mapping[str, Estimate], after: Mapping[str, Estimate]) -> str:
    """The scores before and after with their intervals, a line each, for a terminal."""
    rows = [("", "before", "", "after", "")]
    names = [*STRICT, *(name for name in before if name not in STRICT)]
    rows += [
        (_name(name), *_told(before[name]), *_told(after[name])) for name in names if name in before and name in after
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number % 2 == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _told(rate: Estimate) -> tuple[str, str]:
    return f"{rate.value:.3f}", f"({rate.low:.3f} to {rate.high:.3f})"


def _rows(report: Report, names: Iterable[str]) -> list[dict[str, Any]]:
    before, after = report.before.scores, report.after.scores
    return [
        {
            "name": _name(name),
            "bars": interval_bars(before[name], after[name]),
            "before": _told(before[name]),
            "after": _told(after[name]),
            "example": _example(name.partition(".")[0]),
        }
        for name in names
        if name in before and name in after
    ]


def _name(score: str) -> str:
    subtask, _, kind = score.partition(".")
    return f"{subtask.replace('_', ' ')}{f', {KINDS[kind]}' if kind else ''}"


def _example(subtask: str) -> str:
    if subtask == RECONSTRUCTION:
        return "no words: the picture itself"
    return "" if subtask == "overall" else prompts(subtask, 1)[0].text


def _marks(drawn: Sequence[Drawn]) -> list[dict[str, str]]:
    """Pictures as a strip of the page shows them, at most COLUMNS of them."""
    return [
        {"source": embed(each.picture), "about": each.prompt.text, "verdict": "passed" if each.passed else "failed"}
        for each in drawn[:COLUMNS]
    ]


def _original(drawn: Drawn) -> list[dict[str, str]]:
    if drawn.original is None:
        return []
    return [{"source": embed(drawn.original), "about": f"the original: {drawn.prompt.text}", "verdict": ""}]


def _pairs(report: Report, subtask: str) -> list[tuple[Drawn, Drawn]]:
    """The first pictures of a subtask, before and after, which were asked for with the same words and noise."""
    return list(zip(report.before.of(subtask), report.after.of(subtask), strict=True))[:PAIRS]


def _times(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
