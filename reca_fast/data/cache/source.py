"""A cache that `reca-fast cache` made, as a source: its records hold what a model's encoders made of their pictures."""

from functools import lru_cache
from pathlib import Path

from reca_fast.data.cache.format import Entry, Shard, read_index, shard_path, whole_shards
from reca_fast.data.captions import Caption
from reca_fast.data.inputs import Size
from reca_fast.data.reasons import printable
from reca_fast.data.records import BadImage, BadRecord, Record
from reca_fast.errors import UserError
from reca_fast.sample import Encoded, Turn

OPEN_SHARDS = 256
"""How many shards are kept open. Opening one takes about a millisecond, and a process may have some 1000 files open."""


class CacheSource:
    """The records of the source that a cache was made of, in the same order, without their bytes.

    Args:
        folder: the cache.

    Raises:
        UserError: the folder is no cache, or shards are missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, read_index(folder)
        self.ignored = self.index.ignored
        there = set(whole_shards(folder, self.index))
        if missing := [shard for shard in range(self.index.shards) if shard not in there]:
            raise UserError(
                f"{folder} is not complete: {len(missing)} of {self.index.shards} shards are missing, first "
                f"{shard_path(folder, missing[0]).name}; give the same `reca-fast cache` command again, which goes on."
            )
        self._shard = lru_cache(OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        return self.index.records

    def key(self, index: int) -> str:
        shard, number = divmod(index, self.index.records_per_shard)
        return self._shard(shard).entry(number).key

    def size(self, index: int) -> int:
        return 0

    def read(self, index: int) -> Record:
        """The record, whose `cached` stands in place of the bytes of its picture.

        Raises:
            BadRecord: the record, or the header of its picture, could not be read when the cache was made.
        """
        shard, number = divmod(index, self.index.records_per_shard)
        opened = self._shard(shard)
        entry = opened.entry(number)
        if entry.size is None:
            raise BadRecord(entry.bad)
        caption: Caption | None = tuple(entry.captions) if isinstance(entry.captions, list) else entry.captions
        turns = tuple(Turn(*turn) for turn in entry.turns)
        return Record(entry.key, b"", caption, entry.lack, CachedPictures(opened, number, entry, entry.size), turns)

    def _open(self, shard: int) -> Shard:
        return Shard(shard_path(self.folder, shard), len(self.index.of_shard(shard)))


class CachedPictures:
    """What a cache holds of one record's pictures.

    Args:
        shard, number: where it is.
        entry: what the shard says of it.
        size: width and height of the picture as it is seen, in pixels, before it was resized.
    """

    def __init__(self, shard: Shard, number: int, entry: Entry, size: Size) -> None:
        self._shard, self._number, self._entry, self.size = shard, number, entry, size

    def read(self, condition: Size | None, target: Size | None) -> tuple[Encoded | None, Encoded | None]:
        """What the encoders made of the condition and of the target; None for a size that is None.

        Raises:
            BadImage: the picture could not be decoded when the cache was made.
            UserError: the shard is damaged, or holds pictures of other sizes.
        """
        if self._entry.bad:
            raise BadImage(self._entry.bad)
        stored = self._shard.read(self._number)
        pictures = []
        for name, size in (("condition", condition), ("target", target)):
            found = None if size is None else stored.get(name)
            if size is not None and (found is None or (found.width, found.height) != size):
                raise UserError(
                    f"{self._shard.path} holds no {name} of {size[0]} x {size[1]} of {printable(self._entry.key)}; it "
                    "was made with other settings, make the cache anew."
                )
            pictures.append(found)
        return pictures[0], pictures[1]


def verify_cache(folder: Path) -> str:
    """Read a whole cache, compare it with its checksums, and say in one line what it holds.

    Raises:
        UserError: a shard is missing or damaged.
    """
    source = CacheSource(folder)
    usable = size = 0
    for number in range(source.index.shards):
        path = shard_path(folder, number)
        size += path.stat().st_size
        shard = Shard(path, len(source.index.of_shard(number)))
        for record in range(len(source.index.of_shard(number))):
            shard.read(record)
            usable += not shard.entry(record).bad
    each = f", {size / usable / 1e6:.3g} MB each" if usable else ""
    return (
        f"{folder}: a whole cache of {usable} pictures{each}, {len(source) - usable} records unusable, "
        f"{source.index.shards} shards."
    )
