"""Captions: from the bytes of a file or the cell of a table to texts, or to the reason why there are none.

A record may have several captions, as a list or as a JSON object {name: caption} (the layout of BAGEL's authors). Each
epoch uses one of them, which `choose_caption` draws.
"""

import codecs
import json
from dataclasses import dataclass
from typing import Any

from reca_fast.randomness import stable_uniform

ENDINGS = (".txt", ".caption", ".json")
"""Endings of caption files beside a picture, in lower case. Of several files the first with a usable caption counts."""
FIELDS = ("caption", "captions", "text", "prompt")
"""Keys under which a JSON object holds captions. Of several, the first with a usable caption counts."""
MAX_BYTES = 2**20
"""A caption file that is larger is not used."""
NO_CAPTION = "no caption"
"""The reason that is given where nothing was found at all."""
BYTE_ORDER_MARKS = (  # the longer ones first, because UTF-32's little-endian mark begins with UTF-16's
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
    """The captions that were found for one record."""

    texts: tuple[str, ...] = ()
    lack: str = NO_CAPTION  # why `texts` is empty, in a short fixed phrase; means nothing when it is not

    @property
    def caption(self) -> Caption | None:
        """The only text, all of several, or None when there is none."""
        return self.texts if len(self.texts) > 1 else self.texts[0] if self.texts else None


def choose_caption(caption: Caption, seed: int, epoch: int, key: str) -> str:
    """The only caption, or of several the one for the record `key` in `epoch`, drawn uniformly.

    `seed` is that of the data (`data.seed`).
    """
    if isinstance(caption, str):
        return caption
    return caption[int(stable_uniform("caption", seed, epoch, key) * len(caption))]


def captions_in_file(data: bytes, ending: str, name: str = "") -> Captions:
    """The captions in a file: the whole text, or what a file ending in .json holds under one of FIELDS.

    Args:
        data: the file.
        ending: of its name.
        name: `data.caption_name`: only captions with this name count; empty where all do.
    """
    if len(data) > MAX_BYTES:
        return Captions(lack="caption of more than 1 MB")
    try:
        text = _decoded(data)
    except UnicodeDecodeError:
        return Captions(lack="caption in an unknown encoding (UTF-8 is read, UTF-16 with its mark)")
    if ending != ".json" or name:
        return captions_in_cell(text, name)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return Captions(lack="damaged caption file")
    return _under_fields(value) if isinstance(value, dict) else captions_in_cell(value)


def captions_in_cell(value: object, name: str = "") -> Captions:
    """The captions in a cell of a table: a text, a list or mapping of texts, or JSON that spells such a list.

    A mapping with one of FIELDS among its keys holds captions under these alone.

    Args:
        value: the cell.
        name: `data.caption_name`: only captions with this name count; empty where all do.
    """
    if isinstance(value, bytes):
        return captions_in_file(value, ".txt", name)
    if name:
        return _called(value, name)
    if not isinstance(value, str):
        return _together(value)
    parsed = _as_json(value)
    if isinstance(parsed, dict) and any(field in parsed for field in FIELDS):
        return _under_fields(parsed)
    if isinstance(parsed, dict) or _together(parsed).texts:
        return _together(parsed)
    return _one(value)


def _called(value: object, name: str) -> Captions:
    """The captions with a name, in the first mapping that has it, through lists, FIELDS and JSON texts."""
    open_values = [value]  # a stack instead of recursion, since nesting may be deep
    while open_values:
        value = open_values.pop()
        value = _as_json(value) if isinstance(value, str) else value
        if isinstance(value, dict) and value.get(name) is not None:
            return captions_in_cell(value[name])
        if isinstance(value, dict):
            open_values += [value[field] for field in reversed(FIELDS) if field in value]
        elif isinstance(value, list | tuple):
            open_values += reversed(value)
    return Captions(lack=f"no caption called {name!r}")


def _decoded(data: bytes) -> str:
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


def _under_fields(fields: dict[str, Any]) -> Captions:
    found = [captions_in_cell(fields[field]) for field in FIELDS if fields.get(field) is not None]
    return next((captions for captions in found if captions.texts), found[0] if found else Captions())


def _as_json(text: str) -> object:
    """The list or mapping that a text spells in JSON; None when it spells neither."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _together(value: object) -> Captions:
    """Every text anywhere inside nested lists and mappings, in order."""
    texts: list[str] = []
    lack, open_values = NO_CAPTION, [value]  # a stack instead of recursion, since nesting may be deep
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
