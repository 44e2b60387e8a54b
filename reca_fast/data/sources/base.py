"""What every kind of source offers: its records, by number, in an order that never changes."""

import os
from typing import Protocol

from reca_fast.data.formats import why_not_by_name
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import Record
from reca_fast.errors import UserError, did_you_mean

MAX_PICTURE_BYTES = 2**30
"""An encoded picture with more bytes is not read."""


class Source(Protocol):
    """Records by number, from 0 to len - 1. Several threads may read at once."""

    ignored: Reasons
    """The files, and the files inside of shards, that are no records, by the reason why they were left out."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The record's key, without reading the record."""
        ...

    def size(self, index: int) -> int:
        """Bytes of the encoded picture, or of the file that holds it with others; 0 if unknown. Nothing is read.

        Raises:
            OSError: the file is gone.
        """
        ...

    def read(self, index: int) -> Record:
        """The record with this number.

        Raises:
            BadRecord: it cannot be read.
        """
        ...


def hidden(name: str) -> bool:
    """Whether a file or folder with this name belongs to a system or a program and not to the user's data."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; empty when there is none."""
    return os.path.splitext(name)[1].lower()


def why_no_picture(ending: str) -> str:
    """The reason under which a file that is no picture, with this ending, is counted."""
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
