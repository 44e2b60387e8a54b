"""The prompt of every picture is read back from a benchmark's folder: it is what the picture was drawn from."""

import json

import pytest

from reca_fast.errors import UserError
from reca_fast.evaluation.pictures import pictures_in
from reca_fast.layouts.told import prompts_of_pictures
from tests.layouts import benchmarks
from tests.layouts.test_layouts import said_in
from tests.oracles.evaluators import open_picture

WRITTEN = {
    "geneval": lambda folder: benchmarks.write_lines(folder / "metadata.jsonl", benchmarks.GENEVAL),
    "geneval2": lambda folder: benchmarks.write_lines(folder / "geneval2_data.jsonl", benchmarks.GENEVAL2),
    "wise": lambda folder: benchmarks.wise(folder / "data"),
    "t2i-compbench": lambda folder: benchmarks.compbench(folder / "val"),
}


@pytest.mark.parametrize("layout", WRITTEN)
def test_every_picture_has_the_prompt_that_it_was_drawn_from(draw, tmp_path, layout) -> None:
    prompts, out = WRITTEN[layout](tmp_path), tmp_path / "out"
    assert draw(layout, prompts).code == 0
    found, pictures = prompts_of_pictures(out, prompts), pictures_in(out)
    assert found.keys() == pictures.keys() and len(found) > 2
    for name, prompt in found.items():
        assert said_in(open_picture(pictures[name]), len(prompt.encode())) == prompt


def test_a_folder_in_it_has_its_own_pictures_alone(draw, tmp_path) -> None:
    prompts = benchmarks.compbench(tmp_path / "val")
    assert draw("t2i-compbench", prompts).code == 0
    folder = tmp_path / "out" / "color" / "samples"
    found = prompts_of_pictures(folder, prompts)
    assert found.keys() == pictures_in(folder).keys()
    assert set(found.values()) == {"a green bench and a blue bowl", "a black cat. And a 'dog'"}


def test_originals_elsewhere_and_a_category_of_ones_own_are_remembered(draw, tmp_path) -> None:
    edits = benchmarks.imgedit(tmp_path)
    assert draw("imgedit", edits, "--origin", tmp_path / "originals").code == 0
    wanted = {key: edit["prompt"] for key, edit in benchmarks.EDITS.items()}
    assert prompts_of_pictures(tmp_path / "out", edits) == wanted
    lines = tmp_path / "mine.txt"
    lines.write_text("a red cup\n")
    assert draw("t2i-compbench", lines, "--category", "color", "--out", tmp_path / "cups").code == 0
    assert set(prompts_of_pictures(tmp_path / "cups", lines).values()) == {"a red cup"}
    said = draw("t2i-compbench", lines, "--category", "shape", "--out", tmp_path / "cups")
    assert "drawn with category color, now shape" in said.sentence


def test_other_pictures_and_other_prompts_are_told_apart(draw, tmp_path) -> None:
    prompts = WRITTEN["geneval"](tmp_path)
    assert prompts_of_pictures(tmp_path, prompts) is None
    assert draw("geneval", prompts).code == 0
    benchmarks.write_lines(prompts, benchmarks.GENEVAL[:2])
    with pytest.raises(UserError, match="drawn from other prompts"):
        prompts_of_pictures(tmp_path / "out", prompts)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"layout": "mine"}))
    with pytest.raises(UserError, match=r"layout 'mine', which is none of"):
        prompts_of_pictures(tmp_path / "out", prompts)
