"""Conversations about pictures as a source of records: a file that says what to learn, and pictures found by name."""

import os
from array import array
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash

from reca_fast.config import DataConfig
from reca_fast.data.instructions.conversations import LAYOUT, Conversation, conversation_in
from reca_fast.data.instructions.entries import CHUNK, Fault, entries, parsed
from reca_fast.data.instructions.names import NOWHERE, Names, digest, plain_name
from reca_fast.data.instructions.toy import ToyConversations
from reca_fast.data.reasons import EXAMPLES, Reasons, printable
from reca_fast.data.records import BadRecord, Record
from reca_fast.data.shipped import located
from reca_fast.data.sources import Source, open_files
from reca_fast.data.sources.folder import FolderSource
from reca_fast.data.sources.tar import TarSource
from reca_fast.data.sources.toy import PREFIX as TOY
from reca_fast.errors import UserError, reading

MISSING = "conversation whose picture is missing"
OPTION, PICTURES = "data.instructions", "data.instruction_images"


class _Indexed(NamedTuple):
    """Where the usable entries of a file lie, as arrays of one number each."""

    numbers: "array[int]"  # place of the entry among all entries of the file
    offsets: "array[int]"
    lengths: "array[int]"  # in bytes
    names: "array[int]"  # digests of the pictures' plain names


class InstructionSource:
    """Conversations about pictures, in LLaVA's layout, as records with `turns`. Keys are the file and the entry:
    "llava.json/000000012".

    The file is read once at the start, and an entry again when its record is read, so that a file of a gigabyte takes
    28 bytes of memory for each conversation. What cannot be used, such as conversations without a picture, is left out
    and counted in `ignored`.

    Args:
        file: a JSON list or JSONL lines.
        pictures: a folder or tar shards; where pictures have no names, as in parquet, none is found.

    Raises:
        UserError: the file is missing, or holds no conversation about any of the pictures.
    """

    def __init__(self, file: str, pictures: Source) -> None:
        self._path, self._pictures = Path(os.path.abspath(os.path.expanduser(file))), pictures
        self.ignored = Reasons()
        self._prefix = printable(self._path.name)
        with reading(self._path):
            with open(self._path, "rb") as opened:
                indexed = self._index(opened)
            self.texts = _checksum(self._path)  # of the file, which tells two files apart that name the same pictures
        if not indexed.offsets:
            raise UserError(
                f"{OPTION}={file} holds no conversation about a picture ({self.ignored or 'it is empty'}); it has to "
                f"be a list {LAYOUT} in JSON, or one such object on each line."
            )
        names = Names(pictures)
        found = names.find(np.frombuffer(indexed.names, np.uint64))
        there = found != NOWHERE
        missing = np.flatnonzero(~there).tolist()
        for entry in missing[:EXAMPLES]:
            self.ignored.add(MISSING, self._image(indexed.offsets[entry], indexed.lengths[entry]))
        if missing:
            self.ignored.counts[MISSING] = len(missing)
        if not there.any():
            first = self.ignored.examples[MISSING][0]
            raise UserError(
                f"None of the {len(there)} pictures that {OPTION} names is in {PICTURES}, the first is {first!r}; set "
                f"--{PICTURES} to the folder that these names start from, or to tar shards with files of these names."
            )
        self._numbers, self._offsets, self._lengths = (
            np.frombuffer(numbers, np.int64)[there] for numbers in indexed[:3]
        )
        self._found = found[there]

    def __len__(self) -> int:
        return len(self._found)

    def key(self, index: int) -> str:
        return f"{self._prefix}/{self._numbers[index]:09d}"

    def size(self, index: int) -> int:
        return self._pictures.size(int(self._found[index]))

    def read(self, index: int) -> Record:
        conversation = self._conversation(int(self._offsets[index]), int(self._lengths[index]))
        picture = self._pictures.read(int(self._found[index]))
        return Record(self.key(index), picture.image, None, turns=conversation.turns)

    def says_left_out(self) -> str:
        """One line about the entries that are left out; empty where none is."""
        left_out = sum(self.ignored.counts.values())
        return f"{OPTION}: {len(self)} conversations, {left_out} left out: {self.ignored}" if left_out else ""

    def _index(self, file: BinaryIO) -> _Indexed:
        indexed = _Indexed(array("q"), array("q"), array("q"), array("Q"))
        for number, entry in enumerate(entries(file)):
            name = f"{self._prefix}/{number:09d}"
            if isinstance(entry, Fault):
                self.ignored.add(entry.reason, name)
                continue
            try:
                image = digest(plain_name(conversation_in(entry.value).image))
            except BadRecord as bad:
                self.ignored.add(bad.reason, name)
                continue
            for numbers, value in zip(indexed, (number, entry.offset, entry.length, image), strict=True):
                numbers.append(value)
        return indexed

    def _conversation(self, offset: int, length: int) -> Conversation:
        try:
            with open(self._path, "rb") as file:
                file.seek(offset)
                return conversation_in(parsed(file.read(length)))
        except (OSError, Fault) as error:
            raise BadRecord("conversation that has changed since the start", str(error)) from error

    def _image(self, offset: int, length: int) -> str:
        try:
            return self._conversation(offset, length).image
        except BadRecord:
            return "?"


Conversations = InstructionSource | ToyConversations


def open_instructions(config: DataConfig) -> Conversations:
    """The conversations that `config.instructions` names, about pictures of `config.instruction_images`.

    Raises:
        UserError: one of them is missing, or they do not fit together.
    """
    if config.instructions.startswith(TOY):
        return ToyConversations(config.instructions.removeprefix(TOY))
    file = os.path.abspath(os.path.expanduser(located(config.instructions)))
    if not os.path.isfile(file):
        raise UserError(
            f"{OPTION}={config.instructions} is no file; set --{OPTION} to a JSON or JSONL file in LLaVA's layout."
        )
    where = os.path.expanduser(located(config.instruction_images)) or os.path.dirname(file)
    pictures = open_files(where, config, PICTURES)
    if not isinstance(pictures, FolderSource | TarSource):
        raise UserError(
            f"{PICTURES}={where} holds parquet files, in which pictures have no names; set --{PICTURES} to a folder of "
            "pictures or to tar shards."
        )
    return InstructionSource(file, pictures)


def _checksum(path: Path) -> str:
    """xxh3 with 128 bits of a file, in hex."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while data := file.read(16 * CHUNK):
            state.update(data)
    return state.hexdigest()
