"""Pages are one file that loads nothing, and what is put into them is text."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image

from reca_fast.pages import embed, render
from tests.pages.reader import Page

TEMPLATE = """{% extends "page.html" %}
{% import "parts.html" as parts %}
{% block main %}
{{ parts.facts(settings) }}
<div class="pictures">{{ parts.figure(picture, words, pixels=true, verdict="passed") }}</div>
{{ parts.table(["score", "before"], [[words, 0.5]]) }}
{% endblock %}
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "sheet.html"
    path.write_text(TEMPLATE)
    return path


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_a_page_is_whole_and_loads_nothing(template):
    picture = embed(np.zeros((4, 4, 3), np.uint8))
    page = Page(render(template, title="A sheet", settings={"seed": 3}, picture=picture, words="a circle"))
    assert page.problems == [] and page.loads() == set()
    assert {text for tag, text in page.text if tag in ("title", "h1")} == {"A sheet"}
    assert [image["src"] for image in page.all("img")] == [picture]
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.all("meta"))


def test_a_prompt_is_text_wherever_it_stands(template):
    hostile = """</title></style><script>alert(1)</script>" onload="x' & 한 "quoted" """
    html = render(template, title=hostile, settings={hostile: hostile}, picture="data:,", words=hostile)
    page = Page(html)
    assert page.problems == [] and not page.all("script")
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert [image["alt"] for image in page.all("img")] == [hostile]
    assert {tag for tag, text in page.text if text == hostile.strip()} >= {
        "title",
        "h1",
        "dt",
        "dd",
        "figcaption",
        "th",
    }


def test_what_is_missing_is_named(template):
    with pytest.raises(UndefinedError, match="settings"):
        render(template, title="A sheet", picture="data:,", words="")


def test_small_pictures_keep_every_pixel():
    picture = torch.randint(0, 256, (24, 20, 3), dtype=torch.uint8)
    for longest in (None, 8):
        image = decoded(embed(picture, longest=longest))
        assert image.format == "PNG" and np.array_equal(np.asarray(image), picture.numpy())


def test_large_pictures_shrink_where_that_is_asked_for():
    picture = np.full((300, 600, 3), 120, np.uint8)
    assert decoded(embed(picture)).size == (600, 300)
    image = decoded(embed(picture, longest=200))
    assert image.size == (200, 100) and image.format == "WEBP"
    assert abs(int(np.asarray(image.convert("RGB")).mean()) - 120) <= 2


def test_a_file_is_taken_as_it_is(tmp_path):
    (tmp_path / "loss.svg").write_text("<svg/>")
    assert embed(tmp_path / "loss.svg") == "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode()
