"""`reca-fast compare`: pictures of two folders, or of two checkpoints that draw them, on one page."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.pages.reader import Page

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def drawn(tmp_path):
    """Two folders of pictures: the second lacks one and has another."""
    for folder, names in (("before", ["0000", "0001"]), ("after", ["0000", "extra"])):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(np.full((12, 12, 3), len(name), np.uint8)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "prompts.jsonl").write_text('"a <b>cat</b>"\n{"prompt": "a dog"}\n{"prompt": "never drawn"}\n')
    return tmp_path / "before", tmp_path / "after"


def page(out):
    return Page((out / "index.html").read_text(encoding="utf-8"))


def test_two_folders_are_compared_without_drawing(reca_fast, drawn, tmp_path):
    out = tmp_path / "page"
    said = reca_fast("compare", *drawn, "--prompts", tmp_path / "prompts.jsonl", "--out", out)
    assert said.code == 0 and "2 prompts" in said.out, said
    found = page(out)
    assert found.problems == [] and found.loads() == set()
    assert [section["data-text"] for section in found.all("section")] == ["a <b>cat</b> 0000", "a dog 0001"]
    assert len(found.all("img")) == 3 and ("h1", "before | after") in found.text
    assert [path.name for path in out.iterdir()] == ["index.html"]


def test_without_prompts_pictures_go_by_their_names(reca_fast, drawn, tmp_path):
    assert reca_fast("compare", *drawn, "--out", tmp_path, "--titles", '["A", "B"]').code == 0
    assert [image["alt"] for image in page(tmp_path).all("img")] == ["A: 0000", "B: 0000", "A: 0001", "B: extra"]


def test_scores_of_two_reports_stand_below_the_pictures(reca_fast, drawn, tmp_path):
    for name, value in (("a", 20.0), ("b", 21.5)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"each": {"0000": {"psnr": value}}}))
    reports = json.dumps([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert reca_fast("compare", *drawn, "--scores", reports, "--out", tmp_path).code == 0
    found = page(tmp_path)
    assert ("figcaption", "psnr 21.5") in found.text
    assert [section["data-ahead"] for section in found.all("section")] == ["[1.5]", "[null]", "[null]"]


def test_what_cannot_be_compared_is_one_sentence(reca_fast, drawn, tmp_path):
    first, second = drawn
    (tmp_path / "other.json").write_text('{"each": {"elsewhere": {"psnr": 1.0}}}')
    cases = {
        "is no folder": [first, tmp_path / "nowhere"],
        "--titles names 1": [first, second, "--titles", '["A"]'],
        "is in the reports of --scores": [first, second, "--scores", json.dumps([str(tmp_path / "other.json")] * 2)],
        "--scores names 1": [first, second, "--scores", '["a.json"]'],
        "with the folders that it lies in; give two folders of one layout": [first, tmp_path],
        "is missing": [first, second, "--scores", '["a.json", "b.json"]'],
        "is called as a prompt": [first, second, "--prompts", tmp_path / "others.jsonl"],
    }
    (tmp_path / "others.jsonl").write_text('{"id": "z", "prompt": "a cat"}')
    for said, given in cases.items():
        assert said in reca_fast("compare", *given, "--out", tmp_path / "page").sentence


@pytest.mark.slow
def test_checkpoints_draw_what_is_missing_and_nothing_twice(reca_fast, drawn, tiny_folder, tmp_path):
    out = tmp_path / "page"
    given = ["compare", tiny_folder, drawn[1], "--prompts", tmp_path / "prompts.jsonl", "--out", out, "--batch", 2]
    given += ["--config", "tiny-bagel", "--device", "cpu", "--width", 32, "--height", 32, "--sampling.steps", 1]
    assert "give --prompts FILE.jsonl" in reca_fast(*given, "--prompts", "").sentence
    said = reca_fast(*given)
    assert said.code == 0, said.err
    pictures = {path.name: path.read_bytes() for path in (out / "first").glob("*.png")}
    assert pictures.keys() == {"0000.png", "0001.png", "0002.png"} and len(page(out).all("img")) == 4
    assert Image.open(out / "first" / "0001.png").size == (32, 32)

    (out / "first" / "0002.png").unlink()  # as after a kill
    kept = (out / "first" / "0000.png").stat().st_mtime_ns
    assert reca_fast(*given).code == 0
    assert {path.name: path.read_bytes() for path in (out / "first").glob("*.png")} == pictures
    assert (out / "first" / "0000.png").stat().st_mtime_ns == kept
    assert "all pictures are there" in reca_fast(*given).out

    assert "other settings (sampling)" in reca_fast(*given, "--sampling.seed", 3).sentence
    (tmp_path / "prompts.jsonl").write_text('"another"')
    assert "other settings (prompts)" in reca_fast(*given).sentence
