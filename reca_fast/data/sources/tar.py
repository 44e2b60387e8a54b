"""Tar shards with files named as webdataset does: 000123.jpg, and 000123.txt, .caption or .json with its caption.

At the start the headers are read once. Files are never extracted: a picture is later read from where it lies in the
shard.
"""

import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np

from reca_fast.data.captions import ENDINGS, MAX_BYTES, Captions, captions_in_file
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import BadRecord, Record, record
from reca_fast.data.sources.base import MAX_PICTURE_BYTES, hidden
from reca_fast.data.sources.sidecars import first_usable, group
from reca_fast.errors import UserError

Extent = tuple[int, int]
"""Where a file lies in its shard: offset and size in bytes."""
NOWHERE: Extent = (0, 0)
"""The extent of a file that is not there."""
MAX_HEADER = 2**20
"""The most bytes that a long name or a pax record may have, as tarfile reads these in one piece."""


class TarSource:
    """The pictures in tar shards. Keys are the path of the shard from `base` and that of the picture in it:
    "shard.tar/000123.jpg".

    Of a shard that breaks off or is damaged, the files before that place are used.

    Args:
        base: absolute path of the folder that all shards are below.
        shards: absolute paths.
        ignored: takes shards and files in them that are left out, by reason.
        name: of the captions that count (`data.caption_name`); empty where all do.
        setting: that names the shards, for messages.

    Raises:
        UserError: a shard is compressed, or there is no picture in any.
    """

    def __init__(
        self, base: str, shards: Sequence[str], ignored: Reasons, name: str = "", setting: str = "data.source"
    ) -> None:
        self._shards, self.ignored, self._name = list(shards), ignored, name
        keys: list[str] = []
        # One row of numbers for each picture: shard, offset, size, then offset and size of each kind of caption file.
        # A million Python tuples would take 300 MB in every process.
        rows = [np.zeros((0, 3 + 2 * len(ENDINGS)), np.int64)]
        for number, shard in enumerate(self._shards):
            prefix = os.path.relpath(shard, base).replace(os.sep, "/")
            skipped = Reasons()
            members = _scan(shard, prefix, skipped)
            grouped = group(members, skipped)
            ignored.merge(skipped, prefix)
            keys += [f"{prefix}/{name}" for name in grouped]
            places = [(number, *members[name], *_captions(name, found, members)) for name, found in grouped.items()]
            rows.append(np.array(places, np.int64).reshape(len(places), -1) if places else rows[0])
        if not keys:
            raise UserError(
                f"{setting}: no pictures in {len(self._shards)} tar shards, the first is {self._shards[0]}; "
                f"ignored: {ignored or 'nothing'}."
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
        shard, offset, size, *captions = self._places[index].tolist()
        try:
            # Opened anew for each picture, which takes microseconds: so any number of threads can read any shards.
            with open(self._shards[shard], "rb") as file:
                image = _read_at(file, offset, size)
                places = zip(ENDINGS, captions[::2], captions[1::2], strict=True)
                found = first_usable(_captions_at(file, *place, self._name) for place in places if place[1])
        except OSError as error:
            raise BadRecord("unreadable tar member", str(error)) from error
        return record(self._keys[index], image, found)


def _captions_at(file: BinaryIO, ending: str, offset: int, size: int, name: str) -> Captions:
    return captions_in_file(_read_at(file, offset, min(size, MAX_BYTES + 1)), ending, name)


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise OSError(f"{file.name} has become shorter")
    return data


def _scan(shard: str, prefix: str, ignored: Reasons) -> dict[str, Extent]:
    """Name of a file in the shard -> where it lies. What is left out goes to `ignored`, below the shard's `prefix`."""
    members: dict[str, Extent] = {}
    try:
        with open(shard, "rb") as file:
            start, length = file.read(6), file.seek(0, os.SEEK_END)
        if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
            raise UserError(f"{shard} is compressed: no random access; decompress it to .tar.")
        whole = _collect(shard, length, members, ignored)
    except OSError as error:
        ignored.add(f"shard that cannot be read ({error.strerror})", prefix)
        return {}
    if not whole:
        ignored.add("damaged shard, read as far as it goes", prefix)
    return members


def _collect(shard: str, length: int, members: dict[str, Extent], ignored: Reasons) -> bool:
    """Add the files of a shard of `length` bytes to `members`. Returns whether the shard is whole."""
    try:
        with _BoundedFile(shard) as headers, tarfile.open(fileobj=headers, mode="r:") as archive:
            for member in archive:
                if member.size < 0:  # tarfile would walk backwards for ever
                    return False
                if member.isdir():
                    continue
                name = member.name.removeprefix("./").lstrip("/")
                if reason := _why_not(member, name):
                    ignored.add(reason, name)
                    continue
                if member.offset_data + member.size > length:
                    return False
                if name in members:
                    ignored.add("member replaced by a later one of its name", name)
                members[name] = (member.offset_data, member.size)
            end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError):  # what damaged headers make tarfile raise
        return False
    with open(shard, "rb") as file:  # tarfile takes a cut header for the end, but a whole archive ends in zeros
        file.seek(end)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _why_not(member: tarfile.TarInfo, name: str) -> str:
    """Why a member of a shard is left out; an empty string for one that is not."""
    parts = name.split("/")
    if ".." in parts:
        return "member outside of its shard"
    if any(map(hidden, parts)):
        return "hidden"
    if member.issym() or member.islnk():
        return "link in a shard"
    if not member.isreg() or member.sparse is not None:
        return "neither file nor folder"
    return "file larger than a picture can be" if member.size > MAX_PICTURE_BYTES else ""


class _BoundedFile(io.FileIO):
    """A file that refuses to read more than MAX_HEADER bytes at once: a damaged header could ask for any number."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def _captions(picture: str, endings: Sequence[str], members: Mapping[str, Extent]) -> list[int]:
    """Offset and size of the picture's caption files, one pair for each of ENDINGS, NOWHERE for those it lacks."""
    stem = os.path.splitext(picture)[0]
    places = {ending.lower(): members[stem + ending] for ending in endings}
    return [number for ending in ENDINGS for number in places.get(ending, NOWHERE)]
