"""A folder of picture files. Captions are in a file beside each picture, in a table for all of them, or absent."""

import os
from collections.abc import Mapping, Sequence

from reca_fast.data.captions import MAX_BYTES, Captions, captions_in_file
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import BadRecord, Record, record
from reca_fast.data.sources.base import MAX_PICTURE_BYTES
from reca_fast.data.sources.sidecars import first_usable, group

ROW_WITHOUT_PICTURE = "row of metadata whose picture is missing"


class FolderSource:
    """The pictures among some files. Keys are their paths from `base`, with forward slashes.

    Args:
        base: absolute path of the folder that all files are below.
        files: absolute paths.
        captions: captions from a table, by the absolute path of their picture. A picture without any in the table takes
            those in the file beside it.
        ignored: takes the files that are neither pictures nor captions, by reason.
        name: of the captions that count in the files beside pictures (`data.caption_name`); empty where all do.
    """

    def __init__(
        self, base: str, files: Sequence[str], captions: Mapping[str, Captions], ignored: Reasons, name: str = ""
    ) -> None:
        self._base, self.ignored, self._name = base, ignored, name
        below = os.path.join(base, "")  # cut off by hand: os.path.relpath takes seconds for 100,000 files
        grouped = group((file.removeprefix(below).replace(os.sep, "/") for file in files), ignored)
        self._keys = sorted(grouped)
        self._beside = [grouped[key] for key in self._keys]
        self._captions = dict(captions)
        for path in captions.keys() - {self._path(key) for key in self._keys} if captions else ():
            ignored.add(ROW_WITHOUT_PICTURE, os.path.relpath(path, base))

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def size(self, index: int) -> int:
        return os.path.getsize(self._path(self._keys[index]))

    def read(self, index: int) -> Record:
        key = self._keys[index]
        path = self._path(key)
        image = read_picture(path)
        listed = self._captions.get(path, Captions())
        if listed.texts:
            return record(key, image, listed)
        stem = os.path.splitext(path)[0]
        found = first_usable(_captions_in(stem + ending, ending, self._name) for ending in self._beside[index])
        return record(key, image, found if self._beside[index] else listed)

    def _path(self, key: str) -> str:
        return os.path.join(self._base, key)


def read_picture(path: str) -> bytes:
    """The bytes of a picture file.

    Raises:
        BadRecord: it cannot be read, or has more than MAX_PICTURE_BYTES.
    """
    if not os.path.isfile(path):  # a device or a pipe in its place would never end
        raise BadRecord("unreadable file", f"{path} is no file")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PICTURE_BYTES + 1)
    except OSError as error:
        raise BadRecord("unreadable file", str(error)) from error
    if len(data) > MAX_PICTURE_BYTES:
        raise BadRecord("file larger than a picture can be", f"{path}: more than {MAX_PICTURE_BYTES} bytes")
    return data


def _captions_in(path: str, ending: str, name: str) -> Captions:
    try:
        with open(path, "rb") as file:
            return captions_in_file(file.read(MAX_BYTES + 1), ending.lower(), name)
    except OSError:
        return Captions(lack="unreadable caption file")
