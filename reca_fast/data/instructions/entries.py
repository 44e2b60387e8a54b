"""The entries of a long JSON or JSONL file, one after another, with the place where each lies.

A file of a gigabyte is never held as a whole: a window goes over it, and no entry may be longer than MAX_BYTES.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

MAX_BYTES = 2**24
"""An entry that is longer than this is not read."""
CHUNK = 2**20
"""Bytes that are read at once."""
EDGE = 4
"""Characters behind an entry without which its end is not certain: 1.5e+ may be 1.5, or the beginning of 1.5e+3."""
SPACES = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder(parse_int=float, strict=False)
"""Numbers are never used; as an int, one of 5000 digits would be refused."""


class Entry(NamedTuple):
    """One entry of a file."""

    offset: int  # of its first byte
    length: int  # in bytes
    value: object


@dataclass
class Fault(Exception):
    """A place where a file is no JSON."""

    reason: str  # a short fixed phrase


TOO_LONG = Fault("entry of more than 16 MB")
CUT = Fault("damaged list, read as far as it goes")


def parsed(data: bytes) -> object:
    """The value that the bytes of one entry spell. Raises Fault when they spell none."""
    try:
        return DECODER.decode(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        raise Fault("damaged entry") from None


def entries(file: BinaryIO) -> Iterator[Entry | Fault]:
    """The entries of the list that a JSON file holds, or of the lines of a JSONL file; of a fault, its reason."""
    start = 3 if file.read(3) == codecs.BOM_UTF8 else 0
    file.seek(start)
    while (first := file.read(1)) and first in b" \t\r\n":
        start += 1
    if first == b"[":
        file.seek(start + 1)
        return _listed(file, start + 1)
    file.seek(start)
    return _lines(file, start)


def _lines(file: BinaryIO, offset: int) -> Iterator[Entry | Fault]:
    while line := file.readline(MAX_BYTES + 1):
        if len(line) > MAX_BYTES:
            yield TOO_LONG
            while line and not line.endswith(b"\n"):
                offset += len(line)
                line = file.readline(CHUNK)
        elif line.strip():
            try:
                yield Entry(offset, len(line), parsed(line))
            except Fault as fault:
                yield fault
        offset += len(line)


def _listed(file: BinaryIO, offset: int) -> Iterator[Entry | Fault]:
    window = _Window(file, offset)
    try:
        mark = window.next_mark()
        while mark != "]":
            yield window.entry()
            if (mark := window.next_mark()) == ",":
                window.pass_mark()
                mark = window.next_mark()
            elif mark != "]":
                break
        if mark != "]":
            raise CUT
    except Fault as fault:
        yield fault


class _Window:
    """The part of a file around the entry that is read next.

    Args:
        file: stands at `offset`.
        offset: of the first byte that the window shows.
    """

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file, self._offset = file, offset
        # Bytes that are no UTF-8 become characters of their own, which become these bytes again when they are counted.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._at, self._ended = "", 0, False

    def next_mark(self) -> str:
        """The next character that is no space, where the window then stands; an empty string at the end of the file."""
        while True:
            self._pass(SPACES.match(self._text, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def pass_mark(self) -> None:
        """Go behind the mark."""
        self._pass(self._at + 1)

    def entry(self) -> Entry | Fault:
        """The entry that begins here, or a fault where it is too long; the window then stands behind it.

        Raises:
            Fault: no end of it is found.
        """
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                if len(self._text) - end > EDGE or not self._more():
                    offset = self._offset
                    self._pass(end)
                    length = self._offset - offset
                    return Entry(offset, length, value) if length <= MAX_BYTES else TOO_LONG
                continue
            except RecursionError:
                raise CUT from None
            except ValueError:
                if len(self._text) - self._at > MAX_BYTES:
                    raise CUT from None
            if not self._more():
                raise CUT

    def _pass(self, end: int) -> None:
        passed = self._text[self._at : end]
        self._offset += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogateescape"))
        self._at = end

    def _more(self) -> bool:
        """Show more of the file, at least as much again. Returns whether there was more."""
        if self._ended:
            return False
        data = self._file.read(max(CHUNK, len(self._text) - self._at))
        self._ended = not data
        self._text, self._at = self._text[self._at :] + self._decode(data, self._ended), 0
        return True
