"""What every kind of source offers: records by number, in an order that never changes."""

import json
from dataclasses import dataclass
from typing import Protocol

from reca_fast.errors import UserError, did_you_mean

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = (".txt", ".json")


@dataclass(frozen=True)
class Record:
    """One picture as it lies on disk."""

    key: str  # unique in its source and independent of where the source lies
    image: bytes  # encoded picture
    caption: str | None


class Source(Protocol):
    """Random access to records, safe from several threads. Numbers run from 0 to len - 1, sorted by key.

    A source of files that may be read in part names such files in a list `damaged`.
    """

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


def caption_from(data: bytes, suffix: str) -> str | None:
    """The caption in a .txt, or under "caption" or "text" in a .json; None when there is none."""
    text = data.decode("utf-8", errors="replace")
    if suffix != ".json":
        return clean_caption(text)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return clean_caption(fields.get("caption") or fields.get("text")) if isinstance(fields, dict) else None


def clean_caption(value: object) -> str | None:
    """The text without outer white space; None when nothing is left or it is no text."""
    return (value.strip() or None) if isinstance(value, str) else None


def check_column(option: str, name: str, columns: list[str], where: str) -> None:
    """Raise UserError unless `name`, the value of the setting `option`, is one of the columns."""
    if name not in columns:
        raise UserError(
            f"{where} has no column {name!r}; it has {', '.join(map(repr, columns))}. Set {option}."
            + did_you_mean(name, columns)
        )
