"""T2I-CompBench: a folder for each category, where the name of a picture holds its whole prompt."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import get_args

from reca_fast.errors import UserError, did_you_mean
from reca_fast.schema import shown

from . import Category
from .layout import Drawn, Item, Layout, Output, Prompts, Request, command
from .reading import checked_prompt, counted_lines, file_name

CATEGORIES: tuple[str, ...] = get_args(Category)
ENDING = "_val.txt"
PER_PROMPT, PUBLISHED = 10, 300
"""Pictures of a prompt, and prompts of a category."""


def _files(request: Request) -> Iterator[tuple[str, Path]]:
    """(category, its file): of one file, or of the files <category>_val.txt in a folder."""
    path, asked = request.prompts, request.category
    if path.is_dir():
        wanted = [asked] if asked else CATEGORIES
        found = [(name, path / f"{name}{ENDING}") for name in wanted if (path / f"{name}{ENDING}").is_file()]
        if not found:
            raise UserError(f"{path} holds no {asked or 'CATEGORY'}{ENDING}; check --prompts.")
        yield from found
        return
    category = asked or path.name.removesuffix(ENDING)
    if category not in CATEGORIES:
        raise UserError(
            f"{path} is not called after a category of T2I-CompBench, as in color{ENDING}."
            f"{did_you_mean(category, CATEGORIES)} Set --category to one of {', '.join(CATEGORIES)}."
        )
    named = path.name.removesuffix(ENDING)
    if named in CATEGORIES and named != category:
        raise UserError(f"{path} has the prompts of {named}, and category={category}; leave --category out.")
    yield category, path


def _read(request: Request) -> Prompts:
    items, files = [], []
    for category, path in _files(request):
        files.append(path)
        if category == "complex" and request.per_prompt != PER_PROMPT:
            raise UserError(
                f"per_prompt={request.per_prompt}: the category complex is scored by a script that counts on "
                f"{PER_PROMPT} pictures of a prompt; set it to {PER_PROMPT}, or leave it out."
            )
        for line, text, where in counted_lines(path):
            prompt = checked_prompt(text.split("\t")[0], where)  # what follows a tab is no part of a prompt
            for character in "_/":
                if character in prompt:
                    raise UserError(
                        f"{where}: the prompt {shown(prompt)} holds a {character!r}; the evaluator takes prompts from "
                        "names of files, where it has another meaning. Write the prompt without it."
                    )
            outputs = []
            for picture in range(request.per_prompt):
                ending = f"_{line * request.per_prompt + picture:06d}.png"
                name = file_name(prompt, ending, where, what="prompt")
                outputs.append(Output(PurePosixPath(category, "samples", name), (picture,)))
            items.append(Item(f"{category}/{line}", prompt, tuple(outputs), kind=category, where=where))
    return Prompts(items, files, published=PUBLISHED * len(files))


def _commands(drawn: Drawn) -> Sequence[str]:
    present = {item.kind for item in drawn.items}
    return [line for category in CATEGORIES if category in present for line in _judging(category, drawn.folder)]


def _judging(category: str, folder: Path) -> Sequence[str]:
    place = folder / category
    blip = f"(cd BLIPvqa_eval && {command('python', 'BLIP_vqa.py', '--out_dir', place)})"
    clip = command("python", "CLIPScore_eval/CLIP_similarity.py", "--outpath", place)
    if category in ("color", "shape", "texture"):
        return [blip]
    if category == "non_spatial":
        return [clip]
    scripts = {"3d_spatial": "3D_spatial_eval.py", "numeracy": "numeracy_eval.py"}
    unidet = command("python", scripts.get(category, "2D_spatial_eval.py"), "--outpath", place)
    if category != "complex":
        return [f"(cd UniDet_eval && {unidet})"]
    together = command("python", "3_in_1.py", "--outpath", place)
    return [
        *(blip, f"(cd UniDet_eval && {unidet} --complex True)", f"{clip} --complex True"),
        f"(cd 3_in_1_eval && {together})",
    ]


COMPBENCH = Layout(
    benchmark="T2I-CompBench",
    per_prompt=PER_PROMPT,
    judge=(
        "BLIP-VQA large with spaCy en_core_web_sm (color, shape, texture), UniDet (spatial, numeracy), UniDet with "
        "DPT-hybrid depth (3d_spatial), CLIP ViT-B/32 (non_spatial), the three together (complex)"
    ),
    score="mean over the pictures of a category",
    read=_read,
    commands=_commands,
)
