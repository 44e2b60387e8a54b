"""Which files a path, a glob or a pattern with braces names."""

import glob
import itertools
import os
import re
from collections.abc import Iterator

from reca_fast.data.reasons import Reasons
from reca_fast.data.sources.base import hidden
from reca_fast.errors import UserError

BRACES = re.compile(r"\{([^{}]*)\}")
MAX_RANGE = 1_000_000
"""A range in braces that names more files is refused."""


def find_files(name: str, ignored: Reasons, setting: str = "data.source") -> list[str]:
    """Absolute paths of all files that a path, a glob or a pattern with braces names, sorted.

    Args:
        name: the path, glob or pattern. For a folder, all files below it are taken.
        ignored: takes what is left out, by reason.
        setting: that holds the name, for messages.

    Raises:
        UserError: one of the names in a pattern is missing or may not be read.
    """
    found: set[str] = set()
    for pattern in _expanded(name, setting):
        matches = [pattern] if _exists(pattern, setting) else glob.glob(pattern, recursive=True)
        if not matches:
            raise UserError(
                f"{setting}: nothing is found at {pattern!r}; check the path"
                + (" (a dataset on the Hugging Face hub is written owner/name)." if setting == "data.source" else ".")
            )
        for match in matches:
            if os.path.isfile(match) or not os.path.exists(match):  # a dangling link is found out when it is read
                found.add(match)
            elif not os.path.isdir(match):  # a device or a pipe would never end
                ignored.add("neither file nor folder", match)
            elif "**" not in pattern or match == pattern:  # ** matches every folder as well as the files in it
                found.update(_walk(match, ignored))
    return sorted(map(os.path.abspath, found))


def is_pattern(name: str) -> bool:
    return glob.has_magic(name) or BRACES.search(name) is not None


def _exists(path: str, setting: str) -> bool:
    try:
        os.stat(path)
    except PermissionError:
        raise UserError(f"{setting}: {path!r} may not be read; change its permissions, or those above it.") from None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


def _walk(folder: str, ignored: Reasons) -> Iterator[str]:
    """All files below a folder, without hidden ones. Links to folders are followed, but only after all real folders."""
    seen: set[str] = set()
    linked = [folder]
    while linked:
        below = [linked.pop(0)]
        while below:
            here = below.pop()
            name = os.path.relpath(here, folder)
            if (real := os.path.realpath(here)) in seen:  # a link upwards would go round for ever
                ignored.add("link to a folder already read", name)
                continue
            seen.add(real)
            try:
                entries = sorted(os.scandir(here), key=lambda entry: entry.name)
            except OSError:
                ignored.add("unreadable folder", name)
                continue
            for entry in entries:
                if reason := _why_not(entry):
                    ignored.add(reason, os.path.relpath(entry.path, folder))
                elif not entry.is_dir():
                    yield entry.path
                else:
                    (linked if entry.is_symlink() else below).append(entry.path)


def _why_not(entry: os.DirEntry[str]) -> str:
    """Why an entry of a folder is left out; an empty string for one that is not."""
    if hidden(entry.name):
        return "hidden"
    try:
        if entry.is_dir() or entry.is_file():
            return ""
    except OSError:  # a link that may not be followed, or that leads to itself
        return "unreadable link"
    return "dangling link" if entry.is_symlink() else "neither file nor folder"


def _expanded(name: str, setting: str) -> list[str]:
    """The names that a name with braces stands for; only itself if it exists as it is written.

    'a-{00..02}.tar' stands for a-00.tar, a-01.tar and a-02.tar, and '{x,y}.tar' for x.tar and y.tar.
    """
    if _exists(name, setting):
        return [name]
    pieces = BRACES.split(name)  # text, inside of braces, text, ...
    choices = [_choices(piece, setting) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str, setting: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if not numbers:
        return inside.split(",")
    first, last = numbers.groups()
    if int(last) < int(first):
        raise UserError(f"{setting}: the range {{{inside}}} runs backwards.")
    if int(last) - int(first) >= MAX_RANGE:
        raise UserError(f"{setting}: the range {{{inside}}} names more than {MAX_RANGE:,} files; use a glob.")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
