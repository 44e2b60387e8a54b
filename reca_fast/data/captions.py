"""Captions: from the bytes of a file or the cell of a table to texts, or to the reason why there are none.

A record may have several captions: a list, or BAGEL's own layout, JSON text of {name: caption}. Each epoch uses one of
them, see `templates.choose_caption`.
"""

import codecs
import json
from dataclasses import dataclass
from typing import Any

ENDINGS = (".txt", ".caption", ".json")
"""Of caption files beside a picture, in lower case; the first with a usable caption counts."""
FIELDS = ("caption", "captions", "text", "prompt")
"""Where a JSON object holds captions; the first with a usable one counts."""
MAX_BYTES = 2**20
NO_CAPTION = "no caption"
BYTE_ORDER_MARKS = (  # the longer ones first: UTF-16's begins UTF-32's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


Caption = str | tuple[str, ...]
"""One caption, or several to choose from."""


@dataclass(frozen=True)
class Captions:
    """What was found for one record; when that is nothing, `lack` says why in a short fixed phrase."""

    texts: tuple[str, ...] = ()
    lack: str = NO_CAPTION

    @property
    def caption(self) -> Caption | None:
        return self.texts if len(self.texts) > 1 else self.texts[0] if self.texts else None


def captions_in_file(data: bytes, ending: str) -> Captions:
    """The captions in a file of text, or in a .json under one of FIELDS."""
    if len(data) > MAX_BYTES:
        return Captions(lack="caption of more than 1 MB")
    try:
        text = _decoded(data)
    except UnicodeDecodeError:
        return Captions(lack="caption in an unknown encoding (UTF-8 is read, UTF-16 with its mark)")
    if ending != ".json":
        return captions_in_cell(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return Captions(lack="damaged caption file")
    return _under_fields(value) if isinstance(value, dict) else captions_in_cell(value)


def captions_in_cell(value: object) -> Captions:
    """The captions in the cell of a table: text, a list or mapping of texts, or either of these as JSON text."""
    if isinstance(value, bytes):
        return captions_in_file(value, ".txt")
    if not isinstance(value, str):
        return _together(value)
    parsed = _as_json(value)
    if isinstance(parsed, dict) and any(field in parsed for field in FIELDS):
        return _under_fields(parsed)
    if isinstance(parsed, dict) or _together(parsed).texts:
        return _together(parsed)
    return _one(value)


def _decoded(data: bytes) -> str:
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


def _under_fields(fields: dict[str, Any]) -> Captions:
    found = [captions_in_cell(fields[field]) for field in FIELDS if fields.get(field) is not None]
    return next((captions for captions in found if captions.texts), found[0] if found else Captions())


def _as_json(text: str) -> object:
    """The list or mapping that a text spells; None when it spells neither."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _together(value: object) -> Captions:
    """Every text anywhere in lists and mappings, in their order."""
    texts: list[str] = []
    lack, open_values = NO_CAPTION, [value]  # a stack of its own: nesting may be deep
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            open_values += reversed(value.values())
        elif isinstance(value, list | tuple):
            open_values += reversed(value)
        elif isinstance(value, str):
            captions = _one(value)
            texts += captions.texts
            lack = captions.lack
    return Captions(tuple(texts), lack)


def _one(text: str) -> Captions:
    if "\0" in text:
        return Captions(lack="caption with NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as JSON can spell it
        return Captions(lack="caption that is no valid Unicode")
    text = text.replace("\r\n", "\n").strip()
    return Captions((text,)) if text else Captions(lack="empty caption")
