"""ImgEdit: an edit of each picture, named by the key of its instruction. Basic and UGE have the same layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from reca_fast.data.sources.folder import read_picture
from reca_fast.errors import UserError
from reca_fast.schema import from_dict, shown

from .files import decoded
from .layout import Drawn, Item, Layout, Output, Prompts, Request, command
from .reading import OWN, checked_prompt, file_name, json_of

BASIC = 737
"""Edits of ImgEdit Basic, which alone gives each edit a type."""


@dataclass
class Edit:
    """What one entry of basic_edit.json, singleturn.json or UGE_edit.json says."""

    id: str
    """Path of the picture, below the folder of the originals."""
    prompt: str
    edit_type: str = ""


def _read(request: Request) -> Prompts:
    path = request.prompts
    entries = json_of(path)
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path} is no object of edits; name ImgEdit's basic_edit.json or singleturn.json.")
    items = []
    for key, values in entries.items():
        where = f"{path}, entry {shown(key)}"
        edit = from_dict(Edit, values, where, remedy=OWN)
        picture = _origin(request) / edit.id
        if not picture.is_file():
            raise UserError(f"{where}: {picture} is missing; set --origin to the folder of ImgEdit's originals.")
        items.append(
            Item(
                key=key,
                prompt=checked_prompt(edit.prompt, where),
                outputs=(Output(PurePosixPath(file_name(key, ".png", where))),),
                source=partial(decoded, partial(read_picture, str(picture)), str(picture)),
                kind=edit.edit_type,
                where=where,
            )
        )
    return Prompts(items, [path], published=BASIC if any(item.kind for item in items) else None)


def _commands(drawn: Drawn) -> Sequence[str]:
    result, marks, types = (drawn.folder / f"{name}.json" for name in ("result", "average_score", "typescore"))
    edits = drawn.request.prompts
    given = ("--result_img_folder", drawn.folder, "--origin_img_root", _origin(drawn.request), "--edit_json", edits)
    if not any(item.kind for item in drawn.items):
        return [
            command("python", "UGE_bench.py", *given),
            command("python", "get_average_score.py", "--result_json", result),
        ]
    averages = ("--average_score_json", marks)
    return [
        command("python", "basic_bench.py", *given, "--prompts_json", "JUDGE_PROMPTS"),
        command("python", "step1_get_avgscore.py", "--result_json", result, *averages),
        command("python", "step2_typescore.py", *averages, "--basic_edit", edits, "--typescore_json", types),
    ]


def _origin(request: Request) -> Path:
    return (request.origin or request.prompts.parent).absolute()


IMGEDIT = Layout(
    benchmark="ImgEdit",
    per_prompt=1,
    only="ImgEdit reads one edit of a picture",
    preset="imgedit",
    judge="GPT-4o; RECA's and BAGEL's authors take gpt-4.1-2025-04-14",
    score="mean of three marks from 1 to 5; mean over the edits of a type, and over all",
    read=_read,
    commands=_commands,
)
