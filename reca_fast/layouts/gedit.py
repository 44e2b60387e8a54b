"""GEdit-Bench: for each instruction the edit, and beside it the picture that was edited, by task and language."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow.parquet as pq
from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.data.reasons import Reasons
from reca_fast.data.sources import Source
from reca_fast.data.sources.hugging_face import HuggingFaceSource, open_folder
from reca_fast.data.sources.parquet import DAMAGED, ParquetSource
from reca_fast.errors import UserError
from reca_fast.schema import from_dict, shown

from .files import decoded, encoded
from .layout import Drawn, Item, Layout, Output, Prompts, Request, command
from .reading import checked_prompt, file_name, files_in

TASKS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
PICTURES = ("input_image", "input_image_raw")
"""Columns of the picture to be edited: the first of them that is there."""
HUB = "data"
"""The folder in a dataset of the hub that its parquet files lie in."""
COLUMNS = ("task_type", "key", "instruction", "instruction_language")
SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")


@dataclass
class Row:
    """One row of the dataset stepfun-ai/GEdit-Bench, without its pictures."""

    task_type: str
    key: str | int
    instruction: str
    instruction_language: Literal["en", "cn"]

    def __post_init__(self) -> None:
        if self.task_type not in TASKS:
            raise ValueError(f"task_type is {shown(self.task_type)}, and the evaluator takes {', '.join(TASKS)}")


def _read(request: Request) -> Prompts:
    path, items = request.prompts, []
    files: list[Path] = []
    for table in _tables(path, files):
        for number, values in enumerate(table.rows):
            where = f"{table.where}, row {number}"
            row = from_dict(Row, values, where)
            folder = PurePosixPath(request.model, "fullset", row.task_type, row.instruction_language)
            source = partial(_picture, table.source, number, where)
            items.append(
                Item(
                    key=f"{row.task_type}/{row.instruction_language}/{row.key}",
                    prompt=checked_prompt(row.instruction, where),
                    outputs=(Output(folder / file_name(str(row.key), ".png", where)),),
                    beside={folder / file_name(str(row.key), "_SRCIMG.png", where): partial(_png, source)},
                    source=source,
                    where=where,
                )
            )
    return Prompts(items, files, published=None)


@dataclass(frozen=True)
class _Table:
    rows: Sequence[dict[str, Any]]
    source: Source
    where: str


def _tables(path: Path, files: list[Path]) -> Iterator[_Table]:
    """The rows of a folder that save_to_disk of `datasets` wrote, or of parquet files, which the hub has in `data`.

    Args:
        files: takes the files that are read.
    """
    if any((path / mark).is_file() for mark in SAVED_BY_DATASETS):
        rows = open_folder(str(path), DataConfig.split)
        config = _config(path, rows.column_names, str(path))
        files += sorted(file for file in path.rglob("*.arrow") if file.is_file())
        yield _Table(rows.select_columns(list(COLUMNS)).to_list(), HuggingFaceSource(config, str(path)), str(path))
        return
    if (path / HUB).is_dir() and not any(path.glob("*.parquet")):
        path = path / HUB
    for file in files_in(path, ".parquet", called="rows of GEdit-Bench"):
        files.append(file)
        if not file.is_file():
            raise UserError(f"{file} is missing; check --prompts.")
        try:
            config = _config(file, pq.read_schema(file).names, str(file))
            rows = pq.read_table(file, columns=list(COLUMNS)).to_pylist()
        except DAMAGED as error:
            raise UserError(f"{file} cannot be read as parquet: {' '.join(str(error).split())}.") from None
        whole = file.absolute()
        yield _Table(rows, ParquetSource(str(whole.parent), [str(whole)], config, Reasons()), str(file))


def _config(path: Path, names: Sequence[str], where: str) -> DataConfig:
    """Settings of a source of the pictures. Raises UserError when a column is not there."""
    pictures = next((name for name in PICTURES if name in names), None)
    if missing := [name for name in COLUMNS if name not in names] + ([] if pictures else [PICTURES[0]]):
        raise UserError(f"{where} has no column {missing[0]!r}; name a copy of the dataset stepfun-ai/GEdit-Bench.")
    assert pictures is not None
    return DataConfig(source=str(path), image_column=pictures)


def _picture(source: Source, number: int, where: str) -> Tensor:
    return decoded(lambda: source.read(number).image, where)


def _png(source: "partial[Tensor]") -> bytes:
    return encoded([source()], ".png")


def _commands(drawn: Drawn) -> Sequence[str]:
    model = drawn.items[0].outputs[0].path.parts[0]
    given = ("--model_name", model, "--save_path", drawn.folder, "--backbone", "gpt4o")
    return [command("python", script, *given) for script in ("test_gedit_score.py", "calculate_statistics.py")]


GEDIT = Layout(
    benchmark="GEdit-Bench",
    per_prompt=1,
    only="GEdit-Bench reads one edit of a picture",
    preset="gedit",
    judge="VIEScore with GPT-4.1, or with Qwen2.5-VL-72B-Instruct-AWQ",
    score="sqrt(semantics x quality) of an edit; mean over a task's edits, then over the tasks; en and cn apart",
    read=_read,
    commands=_commands,
)
