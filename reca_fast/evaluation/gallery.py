"""A page that shows what two models drew of the same prompts, side by side: one HTML file with its pictures in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reca_fast.evaluation.intervals import mean
from reca_fast.evaluation.pictures import read_picture
from reca_fast.pages import embed, render

SIDE = 512
"""Pixels: pictures with a longer side are made smaller, so that hundreds of them fit into a page."""
CRISP = 128
"""Pictures up to so many pixels a side are shown enlarged with sharp pixels, not smoothed."""
LESS_IS_MORE = frozenset({"lpips"})
"""Scores of which the smaller one is better."""


@dataclass(frozen=True)
class Row:
    """One prompt, and what each of the two drew of it."""

    name: str
    prompt: str
    pictures: tuple[Path | None, Path | None]  # None where one has drawn nothing
    scores: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})  # by name of the score, for each of the two


def write_gallery(
    file: Path,
    rows: Sequence[Row],
    titles: tuple[str, str],
    facts: Mapping[str, str],
    side: int = SIDE,
) -> None:
    """Write the page.

    Args:
        file: its name; the folder is there.
        rows: prompts in the order in which they are shown.
        titles: what the two are called.
        facts: what the page says on top, such as checkpoints and settings.
        side: the longest side of a picture, in pixels.

    Raises:
        UserError: a picture is damaged.
        OSError: the file cannot be written.
    """
    names = list(dict.fromkeys(name for row in rows for scores in row.scores for name in scores))
    page = render(
        Path(__file__).with_name("gallery.html"),
        title=f"{titles[0]} | {titles[1]}",
        titles=titles,
        facts=facts,
        side=side,
        scores=names,
        means=[[name, *(_mean(rows, name, which) for which in (0, 1))] for name in names],
        rows=[_shown(row, names, side) for row in rows],
    )
    file.write_text(page, encoding="utf-8")


def _shown(row: Row, names: Sequence[str], side: int) -> dict[str, Any]:
    pictures = [None if path is None else read_picture(path) for path in row.pictures]
    return {
        "name": row.name,
        "prompt": row.prompt,
        "sources": [None if picture is None else embed(picture, longest=side) for picture in pictures],
        "pixels": all(picture is None or _is_small(picture) for picture in pictures),
        "said": [", ".join(f"{name} {scores[name]:.3g}" for name in names if name in scores) for scores in row.scores],
        "ahead": [_ahead(row, name) for name in names],
    }


def _is_small(picture: Tensor) -> bool:
    return max(picture.shape[:2]) <= CRISP


def _ahead(row: Row, name: str) -> float | None:
    """By how much the second is better than the first; None where a score is missing or is no number."""
    first, second = (scores.get(name) for scores in row.scores)
    if first is None or second is None or not math.isfinite(first - second):
        return None  # which JSON knows, as a browser reads it; NaN it does not
    return (first - second) if name in LESS_IS_MORE else (second - first)


def _mean(rows: Sequence[Row], name: str, which: int) -> str:
    values = [row.scores[which][name] for row in rows if name in row.scores[which]]
    if not values:
        return "-"
    found = mean(values)
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"
