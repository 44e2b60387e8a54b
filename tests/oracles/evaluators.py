"""What the published evaluators read of a folder, written again from their behaviour: which files they open, what they
take out of a name, and what they stumble over. No judge is asked.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Picture = Image.Image


def open_picture(path: Path) -> Picture:
    with Image.open(path) as picture:
        picture.load()
        return picture


def geneval(folder: Path) -> dict[str, tuple[Any, list[Path]]]:
    """Folder name -> (its metadata, its pictures): folders of digits, one JSON value in each, pictures of digits."""
    seen = {}
    for name in os.listdir(folder):
        if (folder / name).is_dir() and name.isdigit():
            metadata = json.loads((folder / name / "metadata.jsonl").read_text())
            samples = os.listdir(folder / name / "samples")
            seen[name] = metadata, sorted(folder / name / "samples" / s for s in samples if re.match(r"\d+\.png", s))
    return seen


def geneval2(data: Path, paths: Path) -> list[tuple[str, Picture]]:
    """(prompt, its picture) for every line of the benchmark: the picture is found by the prompt."""
    by_prompt = json.loads(paths.read_text())
    prompts = [json.loads(line)["prompt"] for line in data.read_text().splitlines()]
    return [(prompt, open_picture(Path(by_prompt[prompt]))) for prompt in prompts]


def dpg(folder: Path, ids: Sequence[str], side: int) -> tuple[dict[str, list[Picture]], list[str]]:
    """(item id -> its four pictures, files that the reader complains of). An id ends at the first dot of a name."""
    seen, failed = {}, []
    for name in os.listdir(folder):
        item = name.split(".")[0]
        if item not in ids:
            failed.append(name)
            continue
        grid = open_picture(folder / name)
        corners = [(0, 0), (side, 0), (0, side), (side, side)]
        seen[item] = [grid.crop((x, y, x + side, y + side)) for x, y in corners]
    return seen, failed


def dpg_reca(folder: Path, ids: Sequence[str]) -> tuple[dict[str, list[Picture]], list[str]]:
    """(item id -> its pictures, files that the reader complains of). An id ends at the first underscore of a name."""
    seen: dict[str, list[Picture]] = {}
    failed = []
    for name in sorted(os.listdir(folder)):
        item = name.split("_")[0]
        if item in ids:
            seen.setdefault(item, []).append(open_picture(folder / name))
        else:
            failed.append(name)
    return seen, failed


def wise(prompts: Path, folder: Path) -> dict[int, Picture]:
    """prompt_id -> picture, for the ids of one of the three files; ids without a picture are passed over."""
    ids = [entry["prompt_id"] for entry in json.loads(prompts.read_text())]
    return {i: open_picture(folder / f"{i}.png") for i in ids if (folder / f"{i}.png").exists()}


def compbench(category: Path) -> list[tuple[int, str]]:
    """(number, prompt) of every file in the samples of a category, in the reader's order; all must be pictures."""
    samples = category / "samples"
    names = sorted(os.listdir(samples), key=lambda name: int(name.split("_")[-1].split(".")[0]))
    for name in names:
        open_picture(samples / name)
    return [(int(name.split("_")[1].split(".")[0]), name.split("_")[0]) for name in names]


def imgedit(edits: Path, folder: Path, origin: Path) -> dict[str, tuple[Picture, Picture, str, str]]:
    """key -> (original, edit, prompt, edit type) of every entry; an edit that is missing is an error."""
    entries = json.loads(edits.read_text()).items()
    return {
        key: (open_picture(origin / e["id"]), open_picture(folder / f"{key}.png"), e["prompt"], e["edit_type"])
        for key, e in entries
    }


def gedit(save: Path, model: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Picture, Picture]]:
    """key -> (source, edit brought to its size) of the rows of which both are there."""
    seen = {}
    for row in rows:
        place = save / model / "fullset" / row["task_type"] / row["instruction_language"]
        source, edit = place / f"{row['key']}_SRCIMG.png", place / f"{row['key']}.png"
        if source.exists() and edit.exists():
            raw = open_picture(source)
            seen[row["key"]] = raw, open_picture(edit).convert("RGB").resize(raw.size)
    return seen


COMMANDS = {
    "evaluate_images.py": ({"--outfile", "--model-path"}, {"--model-config", "--options"}),
    "compute_dpg_bench.py": (
        {"--image-root-path", "--res-path", "--vqa-model"},
        {"--resolution", "--csv", "--pic-num"},
    ),
    "evaluation.py": ({"--benchmark_data", "--image_filepath_data", "--method", "--output_file"}, set()),
    "gpt_eval.py": (
        {"--json_path", "--image_dir", "--output_dir", "--api_key", "--model", "--result_full", "--result_scores"},
        {"--api_base", "--max_workers"},
    ),
    "basic_bench.py": (
        {"--result_img_folder", "--edit_json", "--origin_img_root", "--prompts_json"},
        {"--num_processes"},
    ),
    "UGE_bench.py": ({"--result_img_folder", "--edit_json", "--origin_img_root"}, {"--num_processes"}),
    "step1_get_avgscore.py": ({"--result_json", "--average_score_json"}, set()),
    "step2_typescore.py": ({"--average_score_json", "--basic_edit", "--typescore_json"}, set()),
    "get_average_score.py": ({"--result_json"}, set()),
}
"""Script of an evaluator -> the options that it has to be given, by its rules or for sense, and those that it takes."""


def wrong_options(lines: Sequence[str]) -> list[str]:
    """What the scripts of printed commands would refuse of them. Scripts that are not in COMMANDS are passed over."""
    wrong = []
    for line in lines:
        words = shlex.split(line)
        script = next((name for word in words if (name := word.rsplit("/", 1)[-1]) in COMMANDS), None)
        if script:
            needed, more = COMMANDS[script]
            given = {word for word in words if word.startswith("--")}
            wrong += [f"{script} lacks {name}" for name in sorted(needed - given)]
            wrong += [f"{script} has no {name}" for name in sorted(given - needed - more)]
    return wrong
