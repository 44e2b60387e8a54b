"""Pictures and the caption files beside them, told by their name: 000123.jpg and 000123.txt, .caption or .json."""

import os
from collections.abc import Iterable

from reca_fast.data import captions
from reca_fast.data.captions import Captions
from reca_fast.data.formats import PICTURES
from reca_fast.data.reasons import Reasons
from reca_fast.data.sources.base import ending_of, why_no_picture


def group(names: Iterable[str], ignored: Reasons) -> dict[str, tuple[str, ...]]:
    """Name of a picture -> the endings of its caption files as they are written, in the order of `captions.ENDINGS`.

    Args:
        names: names of all files, with folders.
        ignored: takes the names that are neither pictures nor caption files of one.
    """
    pictures: list[str] = []
    endings: dict[str, list[str]] = {}  # by stem
    others: list[str] = []
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() in captions.ENDINGS:
            endings.setdefault(stem, []).append(ending)
        elif ending.lower() in PICTURES:
            pictures.append(name)
        else:
            others.append(name)
    order = {ending: number for number, ending in enumerate(captions.ENDINGS)}
    kept: dict[
        tuple[str, ...], tuple[str, ...]
    ] = {}  # equal tuples are one object, so that millions take little memory
    grouped = {}
    for name in pictures:
        found = tuple(sorted(endings.get(os.path.splitext(name)[0], ()), key=lambda ending: order[ending.lower()]))
        grouped[name] = kept.setdefault(found, found)
    stems = {os.path.splitext(name)[0] for name in pictures}
    for stem in endings.keys() - stems:
        for ending in endings[stem]:
            ignored.add(f"{ending.lower()} without a picture of its name", stem + ending)
    for name in others:
        ignored.add(why_no_picture(ending_of(name)), name)
    return grouped


def first_usable(found: Iterable[Captions]) -> Captions:
    """The first that holds a caption. If none does, the first of all, because it says why."""
    first = None
    for each in found:
        if each.texts:
            return each
        first = first or each
    return first or Captions()
