"""`reca-fast generate`: prompts from a file or the command line, and what cannot be drawn."""

import json
import re

import pytest
from PIL import Image

from reca_fast.cli.prompts import read_prompts
from reca_fast.models.bagel import BagelModel
from reca_fast.models.showo.tiny import write_tiny_checkpoint as write_tiny_showo

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("given", ["a cat", '["a cat", "a red cup"]'])
def test_prompts_become_pictures_of_their_names(given, tiny_folder, reca_fast, tmp_path) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('"from a\\nfile"\n\n{"prompt": "named", "id": "a/b"}\n')
    options = ["--width", 16, "--height", 16, "--sampling.steps", 2, "--device", "cpu", "--batch", 2]
    where = ["--model.path", tiny_folder, "--out", tmp_path, "--prompts", lines]
    said = reca_fast("generate", "--prompt", given, *options, *where)
    prompts = json.loads(given) if given.startswith("[") else [given]
    names = [f"{number:04d}" for number in range(len(prompts) + 1)] + ["a_b"]
    wanted = zip(names, [*prompts, "from a file", "named"], strict=True)
    assert said.out.splitlines()[1:] == [f"{tmp_path / name}.png: {prompt}" for name, prompt in wanted]


def test_pictures_have_the_size_that_the_model_was_made_for_unless_another_is_given(reca_fast, tmp_path) -> None:
    write_tiny_showo(tmp_path / "model", clip=False, layers=1)
    where = ["--model.path", tmp_path / "model", "--prompt", "x", "--sampling.steps", 1, "--device", "cpu"]
    for name, given, size in (("own", [], (64, 64)), ("wide", ["--width", 32], (32, 64))):
        assert reca_fast("generate", *where, "--out", tmp_path / name, *given).code == 0
        with Image.open(tmp_path / name / "0000.png") as picture:
            assert picture.size == size


def test_a_batch_is_no_smaller_than_what_is_drawn_at_once(tiny_folder, reca_fast, tmp_path, monkeypatch) -> None:
    asked, sample = [], BagelModel.sample

    def noted(model, conditions, *others):
        asked.append(len(conditions))
        return sample(model, conditions, *others)

    monkeypatch.setattr(BagelModel, "sample", noted)
    where = ["--model.path", tiny_folder, "--out", tmp_path, "--prompt", '["a", "b", "c", "d"]', "--device", "cpu"]
    sizes = ["--width", 16, "--height", 16, "--sampling.steps", 1, "--batch", 1, "--sampling.together", 3]
    assert reca_fast("generate", *where, *sizes).code == 0
    assert asked == [3, 1] and len([*tmp_path.glob("*.png")]) == 4


PROMPTS_THAT_ARE_NONE = {
    "[" * 10_000 + "]" * 10_000: "nests deeper than 50 levels",
    '{"prompt": ' + '{"a": ' * 60 + "1" + "}" * 61: "nests deeper",
    "9" * 5000: "cannot be read as JSON",
    "NaN": "no 'prompt'",
    '{"prompt": ""}': "no 'prompt'",
    '{"prompt": ["x"]}': "no 'prompt'",
    '{"prompt": "x", "id": ".."}': r"the id '\.\.' names no file",
    '{"prompt": "x", "id": "."}': "names no file",
    '{"prompt": "x", "id": ["a"]}': "is neither text nor a whole number",
    '{"prompt": "x", "id": true}': "is neither text nor a whole number",
    '{"prompt": "x", "id": "' + "y" * 300 + '"}': "is longer than 200 bytes",
    '{"prompt": "x", "image": 3}': "the image 3 names no file",
    '{"prompt": "x", "image": " "}': "the image ' ' names no file",
    '{"prompt": "x", "prompt": "y"}': "holds the name 'prompt' twice",
}


@pytest.mark.slow
def test_impossible_drawings_are_refused_in_one_sentence(tiny_folder, reca_fast, tmp_path) -> None:
    def generate(*options) -> str:
        where = ["--model.path", tiny_folder, "--out", tmp_path / "out", "--device", "cpu", "--sampling.steps", 2]
        return reca_fast("generate", *where, *options).sentence

    assert "No prompt given" in generate()
    assert f"{tmp_path / 'none.jsonl'} is missing; check --prompts" in generate("--prompts", tmp_path / "none.jsonl")
    assert f"{tmp_path} is a folder; name the file of prompts in it" in generate("--prompts", tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('"good"\n{"prompt": "good"}\nnot json\n')
    assert "bad.jsonl, line 3 cannot be read as JSON" in generate("--prompts", bad)
    for line, said in PROMPTS_THAT_ARE_NONE.items():
        bad.write_text(f'"good"\n{line}\n')
        assert re.search(rf"bad\.jsonl, line 2.*{said}", generate("--prompts", bad)), line
    bad.write_text('{"text": "no prompt"}\n')
    assert "bad.jsonl, line 1: no 'prompt'" in generate("--prompts", bad)
    assert "batch=0: it must be at least 1" in generate("--prompt", "x", "--batch", 0)
    assert "multiples of 8" in generate("--prompt", "x", "--width", 30)
    assert "sampling.steps" in generate("--prompt", "x", "--width", 16, "--height", 16, "--sampling.steps", 0)
    (tmp_path / "file").write_text("")
    bad.write_text('{"prompt": "one", "id": "a b"}\n{"prompt": "two", "id": "a_b"}\n')
    assert "two prompts would be drawn to a_b.png" in generate("--prompts", bad)
    bad.write_bytes('"caf\xe9"'.encode("latin-1"))
    assert "bad.jsonl is not UTF-8" in generate("--prompts", bad)
    assert "--prompt is given more than once" in generate("--prompt", "x", "--prompt=y")
    small = ["--prompt", "x", "--width", 16, "--height", 16]
    assert f"{tmp_path / 'file'} cannot be written: File exists" in generate(*small, "--out", tmp_path / "file")


def test_a_prompt_with_an_empty_id_is_numbered(tmp_path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "a", "id": ""}\n{"prompt": "b", "id": null}\n{"prompt": "c\u2028d", "id": 7}\n', "utf-8"
    )
    assert read_prompts(path, 2) == [("0002", "a", None), ("0003", "b", None), ("7", "c\u2028d", None)]
