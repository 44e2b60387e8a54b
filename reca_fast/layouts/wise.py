"""WISE: one picture for each prompt, named by the prompt's id; the first edition, and the verified one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated

from reca_fast.errors import UserError
from reca_fast.schema import Range, from_dict

from .layout import Drawn, Item, Layout, Output, Prompts, Request, command
from .reading import OWN, checked_prompt, files_in, json_of

MARK = "_verified"
"""How the names of the verified edition's files end."""
ALL_VERIFIED, REWRITTEN = "merge", "_rewrite"
"""The verified edition's file of all prompts, and how the first edition's rewritten ones end."""
FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")


@dataclass
class Entry:
    """One prompt of WISE. Its id says its category, so no other can take its place."""

    Prompt: str
    prompt_id: Annotated[int, Range(1, 1000)]
    Explanation: str = ""
    Category: str = ""
    Subcategory: str = ""


def _files(path: Path, ending: str) -> list[Path]:
    """The file itself, or those of a folder that the evaluator reads. Beside them WISE has all prompts in one file, and
    rewritten ones.
    """
    if not path.is_dir():
        return [path]
    known = [path / f"{name}{ending}.json" for name in FILES]
    return [file for file in known if file.is_file()] or files_in(path, ".json", called="prompts")


def _read(request: Request, *, verified: bool) -> Prompts:
    items: dict[int, Item] = {}
    files = _files(request.prompts, MARK if verified else "")
    for path in files:
        _refuse_other_edition(path, verified=verified)
        entries = json_of(path)
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{path} is no list of prompts; name WISE's own files, or the folder of them.")
        for number, values in enumerate(entries, start=1):
            where = f"{path}, entry {number}"
            entry = from_dict(Entry, values, where, remedy=OWN)
            prompt_id = entry.prompt_id
            if prompt_id in items:
                raise UserError(f"{where}: the prompt_id {prompt_id} is in {items[prompt_id].where} too.")
            output = Output(PurePosixPath(f"{prompt_id}.png"))
            items[prompt_id] = Item(str(prompt_id), checked_prompt(entry.Prompt, where), (output,), where=where)
    return Prompts(list(items.values()), files, published=1000)


def _refuse_other_edition(path: Path, *, verified: bool) -> None:
    """Raise UserError for a file that has its name from the other edition."""
    if not verified and (path.stem.endswith(MARK) or path.stem == ALL_VERIFIED):
        raise UserError(f"{path} is of the verified edition, which has another judge; set --layout wise-verified.")
    if verified and path.stem.removesuffix(REWRITTEN) in FILES:
        raise UserError(f"{path} is of the first edition, which has another judge; set --layout wise.")


def _commands(drawn: Drawn) -> Sequence[str]:
    results, scores = drawn.folder / "Results", "_scores_results.jsonl"
    lines = []
    for name in FILES:
        places = ("--json_path", f"data/{name}.json", "--image_dir", drawn.folder, "--output_dir", results)
        files = ("--result_full", f"{name}_full_results.json", "--result_scores", f"{name}{scores}")
        judge = ("--model", "gpt-4o-2024-05-13", "--api_key", "KEY")
        lines.append(command("python", "gpt_eval.py", *places, *files, *judge))
    marks = [results / f"{name}{scores}" for name in FILES]
    return [*lines, command("python", "Calculate.py", *marks, "--category", "all")]


def _commands_verified(drawn: Drawn) -> Sequence[str]:
    return [f"IMAGE_DIR={command(drawn.folder)} bash eval_qwen.sh"]


ONLY = "WISE reads one picture of a prompt"
WISE = Layout(
    benchmark="WISE",
    per_prompt=1,
    only=ONLY,
    preset="wise",
    judge="GPT-4o-2024-05-13",
    score=(
        "WiScore = (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2, marks from 0 to 2; overall = 0.4 "
        "culture + 0.167 time + 0.133 space + 0.1 biology + 0.1 physics + 0.1 chemistry"
    ),
    read=partial(_read, verified=False),
    commands=_commands,
)
WISE_VERIFIED = Layout(
    benchmark="WISE, verified edition",
    per_prompt=1,
    only=ONLY,
    preset="wise",
    judge="Qwen3.5-35B-A3B, served by vLLM",
    score="share of right pictures; overall = 0.4 culture + 0.12 of each of the five other categories",
    read=partial(_read, verified=True),
    commands=_commands_verified,
)
