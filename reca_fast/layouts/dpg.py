"""DPG-Bench, for two readers: its authors', who cut four pictures out of a grid, and RECA's, who take single ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from reca_fast.errors import UserError
from reca_fast.schema import shown

from .layout import Drawn, Item, Layout, Output, Prompts, Request, command
from .reading import checked_prompt, file_name, files_in, json_of, text_of

OPENS_ALL = "images"
"""The readers open whatever lies beside the pictures and complain of it, so pictures have a folder of their own."""


def _texts(path: Path) -> Iterator[tuple[str, str, str]]:
    """(item id, prompt, where it stands) of every prompt: a folder of <item id>.txt, or RECA's JSON file of
    {"<item id>.txt": prompt}.
    """
    if path.is_dir():
        for file in files_in(path, ".txt", called="prompts"):
            yield file.name.removesuffix(".txt"), text_of(file).strip(), str(file)
        return
    if path.suffix not in (".txt", ".json"):
        raise UserError(
            f"{path} is neither the folder dpg_bench/prompts, nor one ITEM_ID.txt of it, nor RECA's prompts.json; name "
            "one of these."
        )
    if path.suffix == ".txt":
        yield path.name.removesuffix(".txt"), text_of(path).strip(), str(path)
        return
    prompts = json_of(path)
    if not isinstance(prompts, dict) or not prompts:
        raise UserError(f'{path} holds no prompts; it must be one object of {{"<item id>.txt": prompt}}.')
    for name, prompt in prompts.items():
        where = f"{path}, entry {shown(name)}"
        if not isinstance(prompt, str):
            raise UserError(f"{where} is {shown(prompt)}, not text.")
        yield name.removesuffix(".txt"), prompt.strip(), where


def _items(path: Path, ends_id: str, outputs: dict[str, tuple[int, ...]]) -> Prompts:
    """The prompts below `path`.

    Args:
        ends_id: the character at which the reader ends the item id in a file's name.
        outputs: what follows the item id in a file's name -> the pictures that the file shows.
    """
    items = []
    for item_id, prompt, where in _texts(path):
        if ends_id in item_id:
            raise UserError(
                f"{where}: the item id {shown(item_id)} holds a {ends_id!r}, at which the evaluator ends it; rename it."
            )
        files = tuple(
            Output(PurePosixPath(file_name(item_id, rest, where, what="item id")), numbers)
            for rest, numbers in outputs.items()
        )
        items.append(Item(item_id, checked_prompt(prompt, where), files, where=where))
    return Prompts(items, files_in(path, ".txt", called="prompts"), published=1065)


def _read_grids(request: Request) -> Prompts:
    return _items(request.prompts, ".", {".png": (0, 1, 2, 3)})


def _read_single(request: Request) -> Prompts:
    return _items(request.prompts, "_", {f"_{number}.jpg": (number,) for number in range(request.per_prompt)})


def _commands_for_grids(drawn: Drawn) -> Sequence[str]:
    return [_judging(drawn, "--resolution", drawn.side, "--pic-num", 4)]


def _commands_for_single(drawn: Drawn) -> Sequence[str]:
    return [_judging(drawn)]


def _judging(drawn: Drawn, *options: object) -> str:
    # Without --res-path the reader writes its results among the pictures and stumbles over them.
    folders = ("--image-root-path", drawn.folder, "--res-path", drawn.out / "dpg_results.txt")
    return command("accelerate", "launch", "dpg_bench/compute_dpg_bench.py", *folders, *options, "--vqa-model", "mplug")


JUDGE = "mPLUG-large VQA (damo/mplug_visual-question-answering_coco_large_en)"
SCORE = "share of questions answered yes, where a no to a question makes those that depend on it a no; mean over"
DPG = Layout(
    benchmark="DPG-Bench",
    per_prompt=4,
    preset="dpg",
    only="DPG-Bench's reader cuts a grid into 2 x 2 pictures",
    judge=JUDGE,
    score=f"{SCORE} prompts",
    read=_read_grids,
    commands=_commands_for_grids,
    folder=OPENS_ALL,
    square=True,
)
DPG_RECA = Layout(
    benchmark="DPG-Bench with the reader of RECA's authors",
    per_prompt=4,
    preset="dpg",
    judge=JUDGE,
    score=f"{SCORE} pictures",
    read=_read_single,
    commands=_commands_for_single,
    folder=OPENS_ALL,
)
