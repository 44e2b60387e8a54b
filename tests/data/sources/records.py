"""Small pictures, what holds them, and how a source reads them again."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from reca_fast.config import DataConfig
from reca_fast.data.sources import Source, open_source

NAMES = ("b", "a", "c")


def picture(name: str) -> bytes:
    """A small PNG, another one for every name."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (sum(map(ord, name)) % 256, 0, 0)).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """A tar of these members, in this order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def opened(path: object, **settings) -> Source:
    """What `data.source` of this value opens, with further settings of the data."""
    return open_source(DataConfig(source=str(path), **settings))


def contents(source: Source) -> list[tuple[str, bytes, str | tuple[str, ...] | None]]:
    """(key, image, caption) of every record, read one after another."""
    records = [source.read(i) for i in range(len(source))]
    assert [record.key for record in records] == [source.key(i) for i in range(len(source))]
    return [(record.key, record.image, record.caption) for record in records]
