"""What every kind of source offers: records by number, in an order that never changes."""

import os
from typing import Protocol

from reca_fast.data.formats import why_not_by_name
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import Record
from reca_fast.errors import UserError, did_you_mean

MAX_PICTURE_BYTES = 2**30
"""An encoded picture that takes more is not read."""


class Source(Protocol):
    """Random access to records, safe from several threads. Numbers run from 0 to len - 1, sorted by key."""

    ignored: Reasons
    """What lies in the source and is no record: every file and member that was left out, by reason."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The record's name, without reading it."""
        ...

    def size(self, index: int) -> int:
        """Bytes of the picture as it lies on disk, or of the shard that holds it, without reading it; 0 if unknown.

        Raises OSError when there is no file any more.
        """
        ...

    def read(self, index: int) -> Record:
        """The record; raises BadRecord when its bytes cannot be had."""
        ...


def hidden(name: str) -> bool:
    """Whether a file or folder belongs to a system or a program, not to the user's data."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; empty when there is none."""
    return os.path.splitext(name)[1].lower()


def why_no_picture(ending: str) -> str:
    """Why a file with this ending is ignored."""
    if reason := why_not_by_name(ending):
        return f"{ending} ({reason})"
    return ending or "file without an ending"


def check_column(option: str, name: str, columns: list[str], where: str) -> None:
    """Raise UserError unless `name`, the value of the setting `option`, is one of the columns."""
    if name not in columns:
        raise UserError(
            f"{where} has no column {name!r}; it has {', '.join(map(repr, columns))}. Set {option}."
            + did_you_mean(name, columns)
        )
