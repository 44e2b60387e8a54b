"""What cannot be drawn for an evaluator is refused in one sentence that names it, before anything is drawn."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.layouts import benchmarks

GOOD = json.dumps(benchmarks.GENEVAL[0]) + "\n"
BAD_FILES = [
    ("geneval", "x.jsonl", "", r"x.jsonl holds no prompts; take the benchmark's own file"),
    ("geneval", "x.jsonl", "[]", r"x.jsonl, line 1 is no object {...}; take the benchmark's own file"),
    ("geneval", "x.jsonl", f"{GOOD}\n{GOOD}", r"x.jsonl, line 2 is empty, and prompts are counted by lines"),
    ("geneval", "x.jsonl", f"{GOOD}not json\n", r"x.jsonl, line 2 cannot be read as JSON"),
    ("geneval", "x.jsonl", f'{GOOD}{{"prompt": "a"}}\n', r"x.jsonl, line 2 lacks tag; take the benchmark's own file"),
    ("geneval", "x.jsonl", '{"tag": "a", "prompt": 3}\n', r"x.jsonl, line 1: prompt is 3, not text"),
    ("geneval", "x.jsonl", '{"tag": "a", "prompt": " "}\n', r"x.jsonl, line 1: the prompt is empty"),
    (
        "geneval",
        "x.jsonl",
        '{"tag": "a", "prompt": "b", "include": [{"class": "c"}]}',
        r"line 1: .* 'class' and 'count'",
    ),
    ("geneval2", "x.jsonl", GOOD, r"x.jsonl, line 1 lacks vqa_list"),
    ("dpg", "a.b.txt", "a cat", r"a.b.txt: the item id 'a.b' holds a '.', at which the evaluator ends it"),
    ("dpg-reca", "a_b.txt", "a cat", r"a_b.txt: the item id 'a_b' holds a '_', at which the evaluator ends it"),
    ("dpg-reca", "x.jsonl", "{}", r"x.jsonl is neither the folder dpg_bench/prompts, .*; name one of these"),
    ("dpg", "README", "a cat", r"README is neither the folder dpg_bench/prompts"),
    ("dpg", "0.txt", " \n", r"0.txt: the prompt is empty"),
    ("dpg", "x.json", "[]", r"x.json holds no prompts"),
    ("dpg", "x.json", '{"0.txt": 1}', r"x.json, entry '0.txt' is 1, not text"),
    ("dpg", "x.json", '{"a/../b.txt": "c"}', r"entry 'a/../b.txt': the item id 'a/../b' holds a '.'"),
    ("dpg", "x.json", '{"a/b.txt": "c"}', r"the item id 'a/b' cannot be the name of a file"),
    ("wise", "x.json", "{}", r"x.json is no list of prompts"),
    ("wise", "x.json", '[{"Prompt": "a", "prompt_id": 1001}]', r"x.json, entry 1: prompt_id is 1001"),
    (
        "wise",
        "x.json",
        '[{"Prompt": "a", "prompt_id": 1}, {"Prompt": "b", "prompt_id": 1}]',
        r"entry 2: .* 1 is in .*entry 1",
    ),
    ("wise", "a_verified.json", "[]", r"a_verified.json is of the verified edition.*set --layout wise-verified"),
    ("wise", "merge.json", "[]", r"merge.json is of the verified edition.*set --layout wise-verified"),
    (
        "wise-verified",
        "natural_science.json",
        "[]",
        r"natural_science.json is of the first edition.*set --layout wise\.",
    ),
    ("wise-verified", "natural_science_rewrite.json", "[]", r"is of the first edition"),
    ("t2i-compbench", "color_val.txt", "fine\na b_c\n", r"color_val.txt, line 2: the prompt 'a b_c' holds a '_'"),
    ("t2i-compbench", "color_val.txt", "a/b\n", r"color_val.txt, line 1: the prompt 'a/b' holds a '/'"),
    ("t2i-compbench", "color_val.txt", "x" * 245, r"color_val.txt, line 1: .* file name longer than 255 bytes"),
    ("t2i-compbench", "colour_val.txt", "a\n", r"not called after a category.*Did you mean 'color'.*Set --category"),
    ("imgedit", "x.json", '{"1": {"id": "a.jpg"}}', r"entry '1' lacks prompt; take the benchmark's own file"),
    ("imgedit", "x.json", "[]", r"x.json is no object of edits"),
    ("imgedit", "x.json", '{"1": {"id": "a.jpg", "prompt": "b"}}', r"entry '1': .*a.jpg is missing; set --origin"),
    ("gedit", "x.parquet", "no parquet", r"x.parquet cannot be read as parquet"),
]


@pytest.mark.parametrize(("layout", "name", "text", "sentence"), BAD_FILES)
def test_a_file_that_is_not_the_benchmarks_is_refused(draw, tmp_path, layout, name, text, sentence) -> None:
    (tmp_path / name).write_text(text)
    said = draw(layout, tmp_path / name).sentence
    assert re.search(sentence, said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layout", "options", "sentence"),
    [
        ("geneval", ["--prompt", "a cat"], "prompt is set, and --layout geneval has prompts of its own"),
        ("geneval", ["--edit", "cat.png"], "edit is set, and --layout geneval has prompts of its own"),
        ("geneval", ["--category", "color"], "category is set, which belongs to --layout t2i-compbench"),
        ("geneval", ["--origin", "x"], "origin is set, which belongs to --layout imgedit"),
        ("wise", ["--per_prompt", 2], "per_prompt=2: WISE reads one picture of a prompt; set it to 1"),
        ("dpg", ["--per_prompt", 1], "per_prompt=1: DPG-Bench's reader cuts a grid into 2 x 2 pictures; set it to 4"),
        ("dpg", ["--width", 32], "width=32, height=16: DPG-Bench is cut into squares"),
        ("geneval", ["--prompts", "."], "is a folder; name the file of prompts in it"),
        ("t2i-compbench", ["--category", "bias"], "category"),
        ("imgedit", ["--width", 32], "width or height is set, but an edit follows the size of its source"),
        ("t2i-compbench", ["--per_prompt", 2], "per_prompt=2: the category complex"),
        ("geneval", ["--sampling.temperature", 1], "sampling.temperature is set"),
    ],
)
def test_options_that_an_evaluator_cannot_take_are_refused(draw, tmp_path, layout, options, sentence) -> None:
    prompts = {
        "geneval": lambda: benchmarks.write_lines(tmp_path / "x.jsonl", benchmarks.GENEVAL),
        "wise": lambda: benchmarks.wise(tmp_path / "wise"),
        "t2i-compbench": lambda: benchmarks.compbench(tmp_path / "compbench"),
        "imgedit": lambda: benchmarks.imgedit(tmp_path),
    }
    (tmp_path / "0.txt").write_text("a cat")
    given = prompts.get(layout, lambda: tmp_path / "0.txt")()
    more = ["--origin", tmp_path / "originals"] if layout == "imgedit" else []
    assert sentence in draw(layout, given, *more, *options).sentence


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"task_type": "made_up"}, "row 0: task_type is 'made_up', and the evaluator takes background_change"),
        ({"instruction_language": "zh"}, "row 0: instruction_language is 'zh', not one of en, cn"),
        ({"key": "a/b"}, "row 0: the key 'a/b' cannot be the name of a file"),
        ({"instruction": ""}, "row 0: the prompt is empty"),
        ({"input_image": b"no picture"}, "row 0: the picture to be edited cannot be read"),
        ({"input_image": None}, "row 0: the picture to be edited cannot be read: row without picture bytes"),
    ],
)
def test_rows_that_are_not_gedits_are_refused(draw, tmp_path, values, sentence) -> None:
    row = benchmarks.ROWS[0] | {"input_image": benchmarks.picture(16, 16)} | values
    kinds = {name: pa.binary() if name == "input_image" else None for name in row}
    table = pa.table({name: pa.array([value], kinds[name]) for name, value in row.items()})
    pq.write_table(table, tmp_path / "x.parquet")
    assert sentence in draw("gedit", tmp_path / "x.parquet").sentence


def test_a_dataset_of_something_else_is_refused(draw, tmp_path) -> None:
    pq.write_table(pa.table({"image": [b""], "text": ["a"]}), tmp_path / "x.parquet")
    assert "x.parquet has no column 'task_type'" in draw("gedit", tmp_path / "x.parquet").sentence
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert "is not a whole folder of save_to_disk" in draw("gedit", tmp_path / "saved").sentence
    (tmp_path / "empty").mkdir()
    assert "holds no rows of GEdit-Bench (*.parquet)" in draw("gedit", tmp_path / "empty").sentence


@pytest.mark.parametrize("layout", ["wise", "imgedit", "dpg"])
def test_a_file_that_is_not_there_is_named_with_its_option(draw, tmp_path, layout) -> None:
    assert "x.json is missing; check --prompts." in draw(layout, tmp_path / "x.json").sentence


def test_a_layout_of_no_benchmark_is_refused_with_those_that_there_are(reca_fast) -> None:
    said = reca_fast("generate", "--layout", "genevall").sentence
    assert "'imgedit', 'gedit' Given value: genevall." in said and "Union" not in said and "None" not in said
    assert "Expected a whole number Given value: abc." in reca_fast("generate", "--width", "abc").sentence


def test_options_of_a_layout_need_one(reca_fast) -> None:
    assert "per_prompt is set" in reca_fast("generate", "--prompt", "a", "--per_prompt", 2).sentence
    assert "--layout wise needs --prompts" in reca_fast("generate", "--layout", "wise").sentence


def test_pictures_of_two_runs_do_not_mix(draw, tmp_path) -> None:
    prompts = benchmarks.write_lines(tmp_path / "x.jsonl", benchmarks.GENEVAL)
    few = ["--per_prompt", 1]
    assert draw("geneval", prompts, *few).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for options, named in (
        (["--sampling.seed", 1], "sampling.seed 0, now 1"),
        (["--sampling.steps", 2], "sampling.steps 3, now 2"),
        (["--width", 32], "width and height [16, 16], now [32, 16]"),
        (["--per_prompt", 2], "per_prompt 1, now 2"),
        (["--sampling.together", 2], "sampling.together 1, now 2"),
        (["--model.precision", "fp32"], "model.precision bf16, now fp32"),
        (["--memory.frozen", "nf4"], "memory.frozen compute, now nf4"),
    ):
        assert f"pictures drawn with {named}; name another --out" in draw("geneval", prompts, *few, *options).sentence
    other = benchmarks.write_lines(tmp_path / "y.jsonl", benchmarks.GENEVAL[:2])
    assert "prompts whose sha256 is" in draw("geneval", other, *few).sentence
    (tmp_path / "checkpoint" / "stub.json").write_text('{"trained": true}')
    assert "another checkpoint, where the checksum of stub.json is" in draw("geneval", prompts, *few).sentence
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    (tmp_path / "out" / "manifest.json").write_text('{"layout": "geneval"}')
    assert "manifest.json lacks" in draw("geneval", prompts, *few).sentence
    (tmp_path / "out" / "manifest.json").unlink()
    assert "no manifest.json says what drew it; name another --out" in draw("geneval", prompts, *few).sentence
