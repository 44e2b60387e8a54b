"""A folder of picture files, with an optional .txt or .json caption beside each."""

import os
from collections.abc import Sequence
from pathlib import Path

from reca_fast.data.images import BadRecord
from reca_fast.data.sources.base import CAPTIONS, Record, caption_from


class FolderSource:
    """Pictures among `files`; keys are paths relative to `base`, with forward slashes."""

    def __init__(self, base: str, files: Sequence[str]) -> None:
        self._base = Path(base)
        self._keys = sorted(Path(os.path.relpath(file, base)).as_posix() for file in files)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def size(self, index: int) -> int:
        return os.path.getsize(self._base / self._keys[index])

    def read(self, index: int) -> Record:
        path = self._base / self._keys[index]
        try:
            return Record(self._keys[index], path.read_bytes(), _caption_beside(path))
        except OSError as error:
            raise BadRecord("unreadable file", str(error)) from error


def _caption_beside(picture: Path) -> str | None:
    for suffix in CAPTIONS:
        path = picture.with_suffix(suffix)
        if path.is_file():
            return caption_from(path.read_bytes(), suffix)
    return None
