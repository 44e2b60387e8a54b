"""Pictures of a folder by name, and which of two folders belong together."""

import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from reca_fast.data.formats import PICTURES
from reca_fast.data.images import decode
from reca_fast.data.records import BadImage
from reca_fast.errors import UserError, reading

NOT_DRAWN = ("_SRCIMG", "grid")
"""What stands beside drawn pictures in the layouts of benchmarks: GEdit's originals, whose names end so, and GenEval's
sheets, whose names are so.
"""


def pictures_in(folder: Path) -> dict[str, Path]:
    """Every picture of a folder and the folders in it: its path within the folder, without its ending -> its file.

    Raises:
        UserError: there is no such folder, no picture in it, or two pictures differ in nothing but their ending.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with pictures in it, as `generate` writes it.")
    found: dict[str, Path] = {}
    with reading(folder):
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in sorted(Path(place) / name for name in files if not name.startswith(".")):
                if path.suffix.lower() not in PICTURES or _is_no_drawing(path.stem):
                    continue
                name = (path.relative_to(folder).parent / path.stem).as_posix()
                if name in found:
                    raise UserError(f"{found[name]} and {path} have one name; keep one of them.")
                found[name] = path
    if not found:
        raise UserError(f"{folder} holds no picture.")
    return found


def _is_no_drawing(stem: str) -> bool:
    return any(stem == mark or (mark.startswith("_") and stem.endswith(mark)) for mark in NOT_DRAWN)


def pair(pictures: Iterable[str], others: Iterable[str], folders: tuple[Path, Path]) -> list[str]:
    """The names that are in both folders, sorted.

    Raises:
        UserError: no name is; the message gives an example of each.
    """
    left, right = set(pictures), set(others)
    if not left & right:
        examples = f"{folders[0]} holds {min(left)} and the like, {folders[1]} {min(right)}"
        raise UserError(f"No picture has its reference: {examples}; give both the same names, endings aside.")
    return sorted(left & right)


def read_picture(path: Path) -> Tensor:
    """The pixels of a picture file, uint8 [H, W, 3]; what is transparent lies on white.

    Raises:
        UserError: it is missing, damaged or no picture.
    """
    with reading(path):
        data = path.read_bytes()
    try:
        return decode(data)
    except BadImage as bad:
        raise UserError(f"{path} cannot be read as a picture: {bad}.") from None
