"""Small benchmarks in the formats of the published ones: their files of prompts, by the name of the layout."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "bird", "count": 1, "position": ["above", 0]}],
        "prompt": "a photo of a bird above a dog",
    },
]
GENEVAL2 = [
    {"prompt": f"{n} bicycles", "atom_count": 1, "vqa_list": [["How many bicycles?", n]], "skills": ["count"]}
    for n in ("three", "four", "three", "five")  # one prompt twice
]
DPG = {"0": "A cat.\n", "COCOval2014000000000328": "A dog and a caf\u00e9.", "partiprompts7": "A red cup."}
EDITS = {
    "1082": {"id": "animal/1.png", "prompt": "Make it red.", "edit_type": "adjust"},
    "673": {"id": "style/2.png", "prompt": "As a woodcut.", "edit_type": "style"},
}
ROWS = [
    {
        "task_type": task,
        "key": f"{task}{language}0b1c",
        "instruction": instruction,
        "instruction_language": language,
        "Intersection_exist": True,
    }
    for task, language, instruction in (
        ("subject-add", "en", "Add a hat."),
        ("subject-add", "cn", "\u52a0\u4e00\u9876\u5e3d\u5b50"),
        ("tone_transfer", "en", "At night."),
    )
]


def picture(width: int, height: int, seed: int = 0) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def wise(folder: Path, ending: str = "") -> Path:
    """Three files, with the ids at which categories begin and end, and one of all prompts."""
    folder.mkdir()
    everything = []
    for name, ids in (
        ("cultural_common_sense", (1, 400)),
        ("spatio-temporal_reasoning", (401, 700)),
        ("natural_science", (701, 1000)),
    ):
        same = {"Explanation": "", "Category": "c", "Subcategory": "s"}
        entries = [{"Prompt": f"What is {i}?", "prompt_id": i, **same} for i in ids]
        (folder / f"{name}{ending}.json").write_text(json.dumps(entries))
        everything += entries
    (folder / "merge.json").write_text(json.dumps(everything))
    return folder


def compbench(folder: Path) -> Path:
    folder.mkdir()
    (folder / "color_val.txt").write_text("a green bench and a blue bowl\na black cat. And a 'dog'\n")
    (folder / "complex_val.txt").write_text("The red hat was on top of the brown rack.\tThe red hat\nA b.\n")
    (folder / "complex_val_action.txt").write_text("no prompts of their own\n")
    return folder


def imgedit(folder: Path) -> Path:
    for number, entry in enumerate(EDITS.values()):
        path = folder / "originals" / entry["id"]
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(24 + 8 * number, 16, number))
    path = folder / "basic_edit.json"
    path.write_text(json.dumps(EDITS))
    return path


def gedit(folder: Path, *, parquet: bool) -> Path:
    """The rows as `datasets` saves them, or as the hub has them."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    kinds = {name: Value("string") for name in ROWS[0]} | {"Intersection_exist": Value("bool")}
    features = Features({**kinds, "input_image": ImageColumn(), "input_image_raw": ImageColumn()})
    rows = []
    for number, row in enumerate(ROWS):
        resized, raw = picture(32, 16 + 8 * number, number), picture(64, 32 + 16 * number, number)
        cells = {"input_image": {"bytes": resized, "path": None}, "input_image_raw": {"bytes": raw, "path": None}}
        rows.append(row | cells)
    dataset = Dataset.from_list(rows, features=features)
    if parquet:
        folder.mkdir()
        dataset.to_parquet(folder / "train-00000-of-00001.parquet")
    else:
        dataset.save_to_disk(folder)
    return folder
