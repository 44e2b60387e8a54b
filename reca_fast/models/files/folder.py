"""Checkpoint folders: JSON files in them, links in them, and copying their small files into a new folder."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca_fast.errors import UserError
from reca_fast.schema import read_json

REMEDY = "copy it from the public checkpoint"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file is missing or damaged, or holds something else (see `reca_fast.schema.read_json`).
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object.")
    return values


def write_object(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, indented and with letters of all scripts as they are."""
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_links(folder: Path, names: Sequence[str]) -> None:
    """Refuse a link that leads nowhere.

    It would pass for the absence of a file that the folder need not have.

    Raises:
        UserError: naming the first such link.
    """
    for path in (folder / name for name in names):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to {path.readlink()}, which is not there; bring it back, or {REMEDY}.")


def files_inside(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those of these files that the folder has, for copying them.

    A link is followed while it stays in the folder, or leads to the blobs of the Hugging Face cache that the folder is
    a snapshot of. Elsewhere it could bring in any file of this machine.

    Raises:
        UserError: a link leads nowhere, or out of the folder.
    """
    check_links(folder, names)
    root = folder.resolve()
    roots = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    found = []
    for path in (folder / name for name in names):
        if not any(path.resolve().is_relative_to(place) for place in roots):
            raise UserError(f"{path} is a link out of its folder, to {path.resolve()}; put a copy in its place.")
        if path.is_file():
            found.append(path)
    return found


def copy_files(files: Sequence[Path], folder: Path) -> None:
    """Copy files into a folder, which is made if it is not there; links become plain files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
