"""What `generate --layout` writes is what the published evaluators read, each by its own rules."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from reca_fast.models.bagel.editing import BagelEditing
from reca_fast.models.bagel.sampling import BagelSampling
from tests.layouts import benchmarks, stub
from tests.oracles import evaluators

SIDE = stub.Model.drawn_side


def said_in(picture: Image.Image, count: int) -> str:
    """What the stub was asked for, from the first pixels of a picture."""
    return np.asarray(picture).tobytes()[:count].decode()


def test_geneval_reads_a_folder_for_each_line_with_twelve_pictures(draw, tmp_path) -> None:
    said = draw("geneval", benchmarks.write_lines(tmp_path / "evaluation_metadata.jsonl", benchmarks.GENEVAL))
    assert said.code == 0, said.err
    seen = evaluators.geneval(tmp_path / "out")
    assert sorted(seen) == ["00000", "00001", "00002"]
    for (metadata, pictures), line in zip((seen[name] for name in sorted(seen)), benchmarks.GENEVAL, strict=True):
        assert metadata == line
        assert [path.name for path in pictures] == [f"{k:05d}.png" for k in range(12)]
        drawn = [evaluators.open_picture(path) for path in pictures]
        assert {said_in(picture, len(line["prompt"])) for picture in drawn} == {line["prompt"]}
        assert len({picture.tobytes() for picture in drawn}) == 12
    assert "3 of 553 prompts, 36 pictures" in said.out
    assert f"evaluate_images.py {tmp_path / 'out'} " in said.out.splitlines()[-1]


def test_geneval2_finds_a_picture_by_its_prompt(draw, tmp_path) -> None:
    data = benchmarks.write_lines(tmp_path / "geneval2_data.jsonl", benchmarks.GENEVAL2)
    assert draw("geneval2", data).code == 0
    seen = evaluators.geneval2(data, tmp_path / "out" / "image_paths.json")
    assert [(prompt, said_in(picture, len(prompt))) for prompt, picture in seen] == [
        (line["prompt"], line["prompt"]) for line in benchmarks.GENEVAL2
    ]


def dpg_json(folder):
    path = folder / "prompts.json"
    path.write_text(json.dumps({f"{name}.txt": text for name, text in benchmarks.DPG.items()}))
    return path


@pytest.fixture(params=["folder", "json"])
def dpg_prompts(request, tmp_path):
    if request.param == "json":
        return dpg_json(tmp_path)
    (tmp_path / "prompts").mkdir()
    for name, text in benchmarks.DPG.items():
        (tmp_path / "prompts" / f"{name}.txt").write_text(text)
    return tmp_path / "prompts"


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_dpg_reads_grids_of_four_pictures_and_nothing_else(draw, dpg_prompts, tmp_path, batch) -> None:
    assert draw("dpg", dpg_prompts, "--batch", batch).code == 0
    seen, failed = evaluators.dpg(tmp_path / "out" / "images", list(benchmarks.DPG), SIDE)
    assert seen.keys() == benchmarks.DPG.keys()
    assert failed == []
    for name, text in benchmarks.DPG.items():
        grid = evaluators.open_picture(tmp_path / "out" / "images" / f"{name}.png")
        assert grid.size == (2 * SIDE, 2 * SIDE)
        assert len({corner.tobytes() for corner in seen[name]}) == 4
        for corner in seen[name]:
            assert said_in(corner, len(text.strip().encode())) == text.strip()


def test_dpg_of_reca_reads_four_jpegs_of_an_id(draw, dpg_prompts, tmp_path) -> None:
    assert draw("dpg-reca", dpg_prompts).code == 0
    seen, failed = evaluators.dpg_reca(tmp_path / "out" / "images", list(benchmarks.DPG))
    assert failed == []
    assert {name: len(pictures) for name, pictures in seen.items()} == dict.fromkeys(benchmarks.DPG, 4)
    assert {path.read_bytes()[:3] for path in (tmp_path / "out" / "images").iterdir()} == {b"\xff\xd8\xff"}


@pytest.mark.parametrize(("layout", "ending"), [("wise", ""), ("wise-verified", "_verified")])
def test_wise_reads_a_picture_for_each_id(draw, tmp_path, layout, ending) -> None:
    folder = benchmarks.wise(tmp_path / "data", ending)
    assert draw(layout, folder).code == 0
    seen: dict[int, Image.Image] = {}
    for path in folder.iterdir():
        seen |= evaluators.wise(path, tmp_path / "out")
    assert sorted(seen) == [1, 400, 401, 700, 701, 1000]
    assert all(said_in(picture, len(f"What is {i}?")) == f"What is {i}?" for i, picture in seen.items())


def test_compbench_reads_prompts_from_names_in_the_order_of_lines(draw, tmp_path) -> None:
    said = draw("t2i-compbench", benchmarks.compbench(tmp_path / "dataset"))
    assert said.code == 0, said.err
    color = evaluators.compbench(tmp_path / "out" / "color")
    lines = ["a green bench and a blue bowl", "a black cat. And a 'dog'"]
    assert color == [(10 * line + k, lines[line]) for line in (0, 1) for k in range(10)]
    complex_ = evaluators.compbench(tmp_path / "out" / "complex")
    assert [prompt for _, prompt in complex_[::10]] == ["The red hat was on top of the brown rack.", "A b."]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["color", "complex"]
    last = said.out.splitlines()[-1]
    assert "BLIP_vqa.py" in last and "3_in_1.py" in last


def test_imgedit_reads_an_edit_for_each_key(draw, tmp_path) -> None:
    edits, origin = benchmarks.imgedit(tmp_path), tmp_path / "originals"
    assert draw("imgedit", edits, "--origin", origin, "--batch", 8).code == 0
    seen = evaluators.imgedit(edits, tmp_path / "out", origin)
    for key, (original, edit, prompt, kind) in seen.items():
        assert (prompt, kind) == (benchmarks.EDITS[key]["prompt"], benchmarks.EDITS[key]["edit_type"])
        assert edit.size == (original.width // 2, original.height // 2)
        assert np.asarray(edit).ravel()[:3].tolist() == np.asarray(original).ravel()[:3].tolist()
        assert np.asarray(edit).tobytes()[3 : 3 + len(prompt)].decode() == prompt


@pytest.mark.parametrize("parquet", [False, True])
def test_gedit_reads_an_edit_and_its_source_for_each_row(draw, tmp_path, parquet) -> None:
    rows = benchmarks.gedit(tmp_path / "GEdit-Bench", parquet=parquet)
    if parquet:  # as it comes from the hub
        (rows / "data").mkdir()
        for file in rows.glob("*.parquet"):
            file.rename(rows / "data" / file.name)
    assert draw("gedit", rows).code == 0
    seen = evaluators.gedit(tmp_path / "out", "checkpoint", benchmarks.ROWS)
    assert seen.keys() == {row["key"] for row in benchmarks.ROWS}
    for number, row in enumerate(benchmarks.ROWS):
        source, edit = seen[row["key"]]
        with Image.open(io.BytesIO(benchmarks.picture(32, 16 + 8 * number, number))) as given:
            assert source.tobytes() == given.tobytes()
        assert edit.size == source.size


def test_the_manifest_says_what_a_score_has_to_name(draw, tmp_path) -> None:
    import hashlib

    prompts = benchmarks.write_lines(tmp_path / "evaluation_metadata_long.jsonl", benchmarks.GENEVAL)
    draw("geneval", prompts, "--per_prompt", 2, "--sampling.seed", 7)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "Mask2Former" in manifest["judge"]
    assert manifest["prompts"] == {
        "file": "evaluation_metadata_long.jsonl",
        "sha256": hashlib.sha256(prompts.read_bytes()).hexdigest(),
        "count": 3,
        "published": 553,
    }
    assert manifest["sampling"] == {"seed": 7, "together": 1, "steps": 3}
    assert manifest["size"] == [SIDE, SIDE]
    assert (manifest["per_prompt"], manifest["pictures"], manifest["complete"]) == (2, 6, True)
    assert manifest["model"]["folder"] == "checkpoint"
    assert manifest["model"]["files"].keys() == {"stub.json"}
    assert manifest["folder"] == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("layout", "write", "setting", "value"),
    [
        ("dpg-reca", dpg_json, "guidance", 3.0),
        ("wise-verified", lambda folder: benchmarks.wise(folder / "data", "_verified"), "guidance_interval", [0.4, 1]),
        ("gedit", lambda folder: benchmarks.gedit(folder / "GEdit", parquet=True), "image_guidance", 1.5),
    ],
)
def test_bagel_draws_a_benchmark_as_its_authors_do_unless_told_otherwise(
    draw, tmp_path, monkeypatch, layout, write, setting, value
) -> None:
    monkeypatch.setattr(stub.Model, "SAMPLING", BagelSampling)
    monkeypatch.setattr(stub.Model, "EDITING", BagelEditing)
    said = draw(layout, write(tmp_path), "--sampling.steps", 2)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert f"sampling: the preset {manifest['preset']}" in said.out and manifest["preset"] == layout.partition("-")[0]
    assert (manifest["sampling"][setting], manifest["sampling"]["steps"]) == (value, 2)


def test_edits_without_types_go_to_the_judge_of_uge(draw, tmp_path) -> None:
    benchmarks.imgedit(tmp_path)
    edits = tmp_path / "UGE_edit.json"
    edits.write_text(json.dumps({key: {"id": e["id"], "prompt": e["prompt"]} for key, e in benchmarks.EDITS.items()}))
    said = draw("imgedit", edits, "--origin", tmp_path / "originals")
    command = f"python UGE_bench.py --result_img_folder {tmp_path / 'out'} --origin_img_root {tmp_path / 'originals'}"
    assert command in said.out.splitlines()[-1]


def test_a_complete_benchmark_is_drawn_once(draw, tmp_path, monkeypatch) -> None:
    prompts = benchmarks.write_lines(tmp_path / "geneval2_data.jsonl", benchmarks.GENEVAL2)
    said = draw("geneval2", prompts)
    assert said.code == 0
    monkeypatch.delattr(stub.Model, "sample")
    again = draw("geneval2", prompts)
    assert "3 pictures are there and kept" in again.out
    assert again.out.splitlines()[-1] == said.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("layout", "scripts"),
    [
        ("geneval", ["evaluate_images.py"]),
        ("geneval2", ["evaluation.py"]),
        ("dpg", ["compute_dpg_bench.py"]),
        ("dpg-reca", ["compute_dpg_bench.py"]),
        ("wise", ["gpt_eval.py"]),
        ("imgedit", ["basic_bench.py", "step1_get_avgscore.py", "step2_typescore.py"]),
        ("imgedit-uge", ["UGE_bench.py", "get_average_score.py"]),
    ],
)
def test_the_commands_to_run_next_have_the_options_of_the_published_scripts(draw, tmp_path, layout, scripts) -> None:
    def uge():
        path = benchmarks.imgedit(tmp_path)
        path.write_text(
            json.dumps({key: {"id": e["id"], "prompt": e["prompt"]} for key, e in benchmarks.EDITS.items()})
        )
        return path

    prompts = {
        "geneval": lambda: benchmarks.write_lines(tmp_path / "evaluation_metadata.jsonl", benchmarks.GENEVAL),
        "geneval2": lambda: benchmarks.write_lines(tmp_path / "geneval2_data.jsonl", benchmarks.GENEVAL2),
        "wise": lambda: benchmarks.wise(tmp_path / "data"),
        "imgedit": lambda: benchmarks.imgedit(tmp_path),
        "imgedit-uge": uge,
    }.get(layout, lambda: dpg_json(tmp_path))()
    more = ["--origin", tmp_path / "originals"] if layout.startswith("imgedit") else []
    assert draw(layout.removesuffix("-uge"), prompts, *more).code == 0
    lines = json.loads((tmp_path / "out" / "manifest.json").read_text())["next"]
    assert all(any(script in line for line in lines) for script in scripts)
    assert evaluators.wrong_options(lines) == []
