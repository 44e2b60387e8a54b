"""What files of prompts have in common: lines, names of files that are made of what they say, and their checksum."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reca_fast.errors import UserError, reading
from reca_fast.schema import parse_json, shown

MAX_BYTES = 2**28
MAX_NAME = 255
"""Bytes that a file's name may have, on every file system that is in use."""
OWN = "take the benchmark's own file"
"""The way out of most that can be wrong with a file of prompts."""


def text_of(path: Path) -> str:
    """The text of a file of prompts. Raises UserError when it is missing, a folder, too large or no UTF-8."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file of prompts in it.")
    with reading(path, missing="check --prompts"), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes; split it.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"The prompts file {path} is not UTF-8 text; save it as UTF-8.") from None


def json_of(path: Path) -> Any:
    """The value of a JSON file of prompts. Raises UserError like `text_of`, and where it is no JSON."""
    return _parsed(text_of(path), str(path))


def counted_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """(number from 0, line, where it stands in words) of every line, for benchmarks that number their prompts by line.

    Empty lines at the end are left out.

    Raises:
        UserError: another line is empty, or there is none: the numbers of the following lines would be in doubt.
    """
    lines = text_of(path).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path} holds no prompts; {OWN}.")
    for number, line in enumerate(lines):
        where = f"{path}, line {number + 1}"
        if not line.strip():
            raise UserError(f"{where} is empty, and prompts are counted by lines; {OWN}.")
        yield number, line.removesuffix("\r"), where


def counted_objects(path: Path) -> Iterator[tuple[int, str, Any, str]]:
    """(number from 0, line, the JSON object on it, where it stands in words) of every line, like `counted_lines`."""
    for number, line, where in counted_lines(path):
        entry = _parsed(line, where)
        if not isinstance(entry, dict):
            raise UserError(f"{where} is no object {{...}}; {OWN}.")
        yield number, line, entry, where


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text, where)
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('.')}; {OWN}.") from None


def files_in(path: Path, ending: str, *, called: str) -> list[Path]:
    """The file itself, or those in the folder `path` whose names end in `ending`, by name.

    Args:
        called: what they are, for messages.

    Raises:
        UserError: nothing is there.
    """
    if not path.is_dir():
        return [path]
    with reading(path):
        found = sorted(file for file in path.iterdir() if file.name.endswith(ending) and file.is_file())
    if not found:
        raise UserError(f"{path} holds no {called} (*{ending}); check --prompts.")
    return found


def checked_prompt(prompt: str, where: str) -> str:
    """The prompt. Raises UserError when there is nothing in it."""
    if not prompt.strip():
        raise UserError(f"{where}: the prompt is empty.")
    return prompt


def file_name(stem: str, ending: str, where: str, *, what: str = "key") -> str:
    """The name of a file, `stem` and `ending`.

    Args:
        where: the place that `stem` comes from, for messages.
        what: what `stem` is there.

    Raises:
        UserError: no file can have that name, or it would lie in another folder.
    """
    name = f"{stem}{ending}"
    if not stem.strip() or stem in (".", "..") or "/" in stem or "\0" in stem:
        raise UserError(f"{where}: the {what} {shown(stem)} cannot be the name of a file, as the evaluator wants it.")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise UserError(
            f"{where}: the {what} {shown(stem)} makes a file name longer than {MAX_NAME} bytes, which no disk takes."
        )
    return name


def checksum_of(files: Sequence[Path]) -> str:
    """The sha256 of one file, in hex as `sha256sum` prints it; of several, that of their lines in `sha256sum *`."""
    sums = []
    for path in files:
        with reading(path), path.open("rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(files) == 1:
        return sums[0]
    names = [path.name for path in files]
    lines = (f"{sum_}  {name}\n" for name, sum_ in sorted(zip(names, sums, strict=True)))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
