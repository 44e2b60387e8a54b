"""Tar shards in webdataset's naming: 000123.jpg with 000123.txt or 000123.json beside it.

Only headers are read, once, at the start; members are never extracted. A picture is later read with one seek.
"""

import io
import os
import tarfile
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from reca_fast.data.images import BadRecord
from reca_fast.data.sources.base import CAPTIONS, PICTURES, Record, caption_from
from reca_fast.errors import UserError

NO_CAPTION = (0, 0, 0)
MAX_HEADER = 2**20
"""Bytes of a header that continues another one, which tarfile reads in one piece: names and pax records."""


class TarSource:
    """Pictures in tar shards; keys are "shard.tar/member.jpg" with the shard's path relative to `base`.

    `damaged` names shards that break off or cannot be parsed further; their complete members are used.
    """

    def __init__(self, base: str, shards: Sequence[str]) -> None:
        self._shards = list(shards)
        self.damaged: list[str] = []
        keys: list[str] = []
        # One row of numbers a picture (shard, offset, size, and the caption's offset, size, kind): a million Python
        # tuples would take 300 MB in every process.
        rows = [np.zeros((0, 6), np.int64)]
        for number, shard in enumerate(self._shards):
            members, whole = _scan(shard)
            prefix = os.path.relpath(shard, base).replace(os.sep, "/")
            if not whole:
                self.damaged.append(prefix)
            named = _pictures(members)
            keys += [f"{prefix}/{name}" for name in named]
            rows.append(np.array([(number, *place) for place in named.values()], np.int64).reshape(-1, 6))
        if not keys:
            raise UserError(
                f"data.source: no pictures ({', '.join(PICTURES)}) in {len(self._shards)} tar shards, "
                f"{len(self.damaged)} of them damaged; the first is {self._shards[0]}."
            )
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._keys = [keys[i] for i in order]
        self._places = np.concatenate(rows)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def size(self, index: int) -> int:
        return int(self._places[index][2])

    def read(self, index: int) -> Record:
        shard, offset, size, caption_offset, caption_size, kind = self._places[index].tolist()
        try:
            # Opening anew costs microseconds and lets any number of threads read any number of shards.
            with open(self._shards[shard], "rb") as file:
                image = _read_at(file, offset, size)
                text = _read_at(file, caption_offset, caption_size)
        except OSError as error:
            raise BadRecord("unreadable tar member", str(error)) from error
        return Record(self._keys[index], image, caption_from(text, CAPTIONS[kind]))


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise OSError(f"{file.name} has become shorter")
    return data


def _scan(shard: str) -> tuple[dict[str, tuple[int, int]], bool]:
    """({member name: (offset, size)}, whether the shard is whole). Hidden and macOS `._` members are left out."""
    with open(shard, "rb") as file:
        start, length = file.read(6), file.seek(0, os.SEEK_END)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise UserError(f"{shard} is compressed: no random access; decompress it to .tar.")
    members: dict[str, tuple[int, int]] = {}
    try:
        with _BoundedFile(shard) as headers, tarfile.open(fileobj=headers, mode="r:") as archive:
            for member in archive:
                if member.size < 0:  # tarfile would walk backwards for ever
                    return members, False
                if not member.isreg() or member.sparse is not None:
                    continue
                if member.offset_data + member.size > length:
                    return members, False
                name = member.name.removeprefix("./")
                if not any(part.startswith(".") for part in name.split("/")):
                    members[name] = (member.offset_data, member.size)
            end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError):  # what damaged headers make tarfile raise
        return members, False
    with open(shard, "rb") as file:  # tarfile takes a cut header for the end, but a whole archive ends in zeros
        file.seek(end)
        return members, file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


class _BoundedFile(io.FileIO):
    """A file that refuses to be read in pieces as large as a damaged header may ask for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def _pictures(members: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int, int, int, int]]:
    """{picture's name: (offset, size, caption's offset, caption's size, index into CAPTIONS)}."""
    pictures = {}
    for name, place in members.items():
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PICTURES:
            captions = ((*members[stem + end], kind) for kind, end in enumerate(CAPTIONS) if stem + end in members)
            pictures[name] = (*place, *next(captions, NO_CAPTION))
    return pictures
