"""GenEval 2: one picture for each prompt, and a file that says which."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from reca_fast.schema import NonNegativeInt, from_dict

from .layout import Drawn, Item, Layout, Output, Prompts, Request, command
from .reading import OWN, checked_prompt, counted_objects

INDEX = "image_paths.json"


@dataclass
class Question:
    """A line of geneval2_data.jsonl."""

    prompt: str
    vqa_list: list[tuple[str, str]]
    atom_count: NonNegativeInt | None = None
    skills: list[Any] | None = None


def _read(request: Request) -> Prompts:
    items: dict[str, Item] = {}
    for number, _, entry, where in counted_objects(request.prompts):
        prompt = checked_prompt(from_dict(Question, entry, where, remedy=OWN).prompt, where)
        # The evaluator finds a picture by its prompt, so one picture serves a prompt that is there twice.
        path = PurePosixPath(f"{number:05d}.png")
        items.setdefault(prompt, Item(f"{number:05d}", prompt, (Output(path),), where=where))
    return Prompts(list(items.values()), [request.prompts], published=800)


def _index(drawn: Drawn) -> Mapping[str, bytes]:
    paths = {item.prompt: str(drawn.folder / item.outputs[0].path) for item in drawn.items}
    return {INDEX: json.dumps(paths, indent=1, ensure_ascii=False).encode() + b"\n"}


def _commands(drawn: Drawn) -> Sequence[str]:
    data = ("--benchmark_data", drawn.request.prompts, "--image_filepath_data", drawn.out / INDEX)
    scores = ("--method", "soft_tifa_gm", "--output_file", drawn.out / "score_lists.json")
    return [command("python", "evaluation.py", *data, *scores)]


GENEVAL2 = Layout(
    benchmark="GenEval 2",
    per_prompt=1,
    only="GenEval 2 reads one picture of a prompt",
    judge="Qwen3-VL-8B-Instruct, by the probabilities of its answers",
    score="Soft-TIFA: mean over prompts of the geometric (GM) or arithmetic (AM) mean of the answers' probabilities",
    read=_read,
    commands=_commands,
    folder="images",
    index=_index,
)
