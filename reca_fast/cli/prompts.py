"""What `reca-fast generate` is asked for: prompts from the command line or a file, and pictures that they change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reca_fast.errors import UserError, reading
from reca_fast.layouts.reading import MAX_BYTES, text_of
from reca_fast.schema import parse_json, shown

if TYPE_CHECKING:
    from torch import Tensor

MAX_NAME = 200


class Prompt(NamedTuple):
    """One picture that is asked for."""

    name: str  # of its file, without the ending
    text: str
    image: Path | None = None  # the picture that the text changes; None where a new one is drawn


def read_prompts(path: Path, first: int, image: Path | None = None) -> list[Prompt]:
    """The prompt of every line of a JSONL file; a bad line is named.

    Args:
        first: number of the first prompt, which names its picture if the line has no id.
        image: the picture that is changed by lines that name none.
    """
    out: list[Prompt] = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = parse_json(line, where)
        values = entry if isinstance(entry, dict) else {"prompt": entry}
        text, given, named = (values.get(key) for key in ("prompt", "id", "image"))
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: no 'prompt'. Write a string or an object with 'prompt'.")
        if named is not None and (not isinstance(named, str) or not named.strip() or "\0" in named):
            raise UserError(f"{where}: the image {shown(named)} names no file; write the path of a picture.")
        name = f"{first + len(out):04d}" if given in (None, "") else _stem(given, where)
        out.append(Prompt(name, text, image if named is None else path.parent / named))
    return out


def prompts_by_picture(folder: Path, path: Path) -> dict[str, str]:
    """What the pictures of a folder were drawn from: the name of each, with the folders that it lies in and without its
    ending -> the text of its prompt.

    Args:
        folder: as `generate` wrote it; where its manifest names a benchmark, `path` is the benchmark's own file.
        path: of the prompts.

    Raises:
        UserError: the file cannot be read, or the pictures were drawn from another one.
    """
    from reca_fast.layouts.told import prompts_of_pictures

    told = prompts_of_pictures(folder, path)
    return {prompt.name: prompt.text for prompt in read_prompts(path, 0)} if told is None else told


def check_image(path: Path) -> None:
    """Read the header of a picture to change.

    Raises:
        UserError: it is missing, or no picture.
    """
    from reca_fast.data.images import picture_size

    data = _bytes(path)
    with _editing(path):
        picture_size(data)


def read_image(path: Path) -> "Tensor":
    """A picture to change, uint8 [H, W, 3], turned as its EXIF orientation says.

    Raises:
        UserError: it is missing, or no picture that can be read.
    """
    from reca_fast.data.images import decode

    data = _bytes(path)
    with _editing(path):
        return decode(data)


def _bytes(path: Path) -> bytes:
    with reading(path, missing="check --edit, or 'image' in the prompts"), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes; save the picture smaller.")
    return data


@contextmanager
def _editing(path: Path) -> Iterator[None]:
    """A context in which a picture's refusal to be decoded becomes a UserError."""
    from reca_fast.data.records import BadImage

    try:
        yield
    except BadImage as bad:
        raise UserError(f"{path} cannot be edited: {bad}.") from None


def _stem(given: Any, where: str) -> str:
    """The name of a picture without its ending: the id, other characters than those of words, . and - made _."""
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise UserError(f"{where}: the id {shown(given)} is neither text nor a whole number.")
    name = re.sub(r"[^\w.-]", "_", given if isinstance(given, str) else shown(given))
    if not name.strip("."):
        raise UserError(f"{where}: the id {shown(given)} names no file; write letters or digits.")
    if len(name.encode()) > MAX_NAME:
        raise UserError(f"{where}: the id {shown(given)} is longer than {MAX_NAME} bytes, too long for a file name.")
    return name
