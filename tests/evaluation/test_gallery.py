"""The page of two models' pictures: one file that loads nothing, whatever the prompts say."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from reca_fast.evaluation.gallery import Row, write_gallery
from tests.pages.reader import Page

HOSTILE = """</section><script>alert('x')</script> "quoted' & <b>bold</b>"""


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((24, 24, 3), 99, np.uint8)).save(path)
    return path


def page(tmp_path, rows, titles=("base", "after"), **options):
    write_gallery(tmp_path / "index.html", rows, titles, {"seed": "0"}, **options)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_a_row_has_both_pictures_and_loads_nothing(tmp_path, picture):
    html, found = page(tmp_path, [Row("0000", "a circle", (picture, picture)), Row("0001", "a ring", (picture, None))])
    assert found.problems == [] and found.loads() == set()
    assert len(found.all("section")) == 2 and len(found.all("img")) == 3
    assert all(image["src"].startswith("data:image/png;base64,") for image in found.all("img"))
    assert [image["alt"] for image in found.all("img")] == ["base: a circle", "after: a circle", "base: a ring"]
    assert ("p", "no picture") in found.text and "http:" not in html and "https:" not in html
    assert all("pixels" in image["class"] and image["loading"] == "lazy" for image in found.all("img"))


def test_prompts_are_text_and_searched_as_they_are(tmp_path, picture):
    _, found = page(tmp_path, [Row(HOSTILE, HOSTILE, (picture, picture))], titles=(HOSTILE, "<i>"))
    assert found.problems == [] and len(found.all("script")) == 1 and not found.all("b") and not found.all("i")
    assert found.all("section")[0]["data-text"] == f"{HOSTILE} {HOSTILE}".lower()
    assert found.all("img")[0]["alt"] == f"{HOSTILE}: {HOSTILE}"


def test_scores_are_shown_and_sorted_by_who_is_ahead(tmp_path, picture):
    pictures = (picture, picture)
    rows = [
        Row("0", "x", pictures, ({"psnr": 20.0, "lpips": 0.5}, {"psnr": 23.0, "lpips": 0.3})),
        Row("1", "y", pictures, ({"psnr": 10.0}, {"lpips": float("nan")})),
    ]
    _, found = page(tmp_path, rows)
    ahead = [json.loads(section["data-ahead"]) for section in found.all("section")]
    assert ahead == [[pytest.approx(3), pytest.approx(0.2)], [None, None]]  # a smaller LPIPS is better
    assert len(found.all("option")) == 5
    assert ("figcaption", "psnr 20, lpips 0.5") in found.text and ("figcaption", "psnr 10") in found.text
    assert any(tag == "td" and text.startswith("15 (") for tag, text in found.text)


def test_without_scores_nothing_is_sorted(tmp_path, picture):
    html, found = page(tmp_path, [Row("0", "x", (picture, picture))])
    assert not found.all("select") and not found.all("table")
    assert "order?.addEventListener" in html


def test_hundreds_of_large_pictures_stay_a_page_that_opens(tmp_path):
    """A row out of sight is not laid out, and a picture is as large as it is shown."""
    noise = np.random.default_rng(0).integers(0, 60, (600, 600, 3))
    path = tmp_path / "large.png"
    Image.fromarray((np.linspace(0, 190, 600)[:, None, None] + noise).astype(np.uint8)).save(path)
    html, found = page(tmp_path, [Row("0", "x", (path, path))] * 3, side=256)
    assert re.search(r"\.row \{[^}]*content-visibility: auto", html)
    assert len(html) < 3 * 2 * 60_000 and not any("pixels" in image["class"] for image in found.all("img"))
