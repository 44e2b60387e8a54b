"""The pictures that ship with the package."""

import json

import numpy as np
import pytest
from PIL import Image

from reca_fast.config import DataConfig
from reca_fast.data.shipped import FOLDER, located
from reca_fast.data.shipped.draw import drawn, scenes, write
from reca_fast.data.sources import open_source
from reca_fast.errors import UserError


def test_they_are_a_source_with_short_and_long_captions() -> None:
    short, long = (open_source(DataConfig(source="shipped:shapes", caption_column=c)) for c in ("short", "long"))
    assert len(short) == len(long) == 48 and not short.ignored
    assert short.read(0).caption == "a red circle"
    assert str(long.read(0).caption).startswith("A large red circle on a ground of")


def test_what_ships_is_what_is_drawn(tmp_path) -> None:
    write(tmp_path)
    for number, scene in enumerate(scenes()):
        kept = np.array(Image.open(FOLDER / "shapes" / f"{number:02d}.png"))
        assert np.abs(kept.astype(int) - drawn(scene)).max() <= 1
    for name in ("shapes/metadata.jsonl", "shapes.conversations.json"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.*")) < 200_000


def test_every_picture_has_a_conversation() -> None:
    talks = json.loads((FOLDER / "shapes.conversations.json").read_text())
    assert [talk["image"] for talk in talks] == [f"{number:02d}.png" for number in range(48)]
    for talk in talks:
        said = talk["conversations"]
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert said[0]["value"].startswith("<image>\n")


def test_a_name_of_nothing_is_told() -> None:
    assert located("shapes") == "shapes"
    with pytest.raises(UserError, match=r"shipped:shape does not ship with the package, only shipped:shapes"):
        open_source(DataConfig(source="shipped:shape"))
