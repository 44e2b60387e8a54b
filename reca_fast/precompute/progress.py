"""What `reca-fast cache` tells: pictures per second, the time left, and at the end what the cache holds."""

import time
from datetime import timedelta
from pathlib import Path

from reca_fast.data.cache.format import Entry, Index, shard_path, whole_shards
from reca_fast.data.reasons import Reasons

QUIET_SECONDS = 5.0
"""Lines of progress are at least this far apart."""


class Progress:
    """Tells how far one process is. Of several processes only the first one tells about its way.

    Args:
        folder, index: the cache.
        rank, world: which process this is, of how many.
        records: how many this process has to encode.
    """

    def __init__(self, folder: Path, index: Index, rank: int, world: int, records: int) -> None:
        self._folder, self._index, self._rank, self._world, self._records = folder, index, rank, world, records
        self._done = 0
        self._skipped = Reasons()

    def begin(self, shards: int, left: int) -> None:
        """Start the clock, and say what is there already.

        Args:
            shards: of this process.
            left: those of them that are still to be made.
        """
        self._since = self._last = time.monotonic()
        if self._rank == 0 and left < shards:
            print(f"{self._folder}: {shards - left} of {shards} shards are there and kept.", flush=True)

    def count(self, entry: Entry) -> None:
        """Note that a record is encoded, or skipped, and tell it now and then."""
        self._done += 1
        if entry.bad:
            self._skipped.add(entry.bad, entry.key)
        now = time.monotonic()
        if self._rank == 0 and (now - self._last >= QUIET_SECONDS or self._done == self._records):
            self._last = now
            rate = self._done / max(now - self._since, 1e-9)
            left = timedelta(seconds=round((self._records - self._done) / rate))
            others = f" in each of {self._world} processes" if self._world > 1 else ""
            print(f"{self._done:,} of {self._records:,} pictures, {rate:.1f} images/s{others}, ETA {left}", flush=True)

    def end(self) -> None:
        """Say what was skipped and, when every shard of the cache is there, what the cache is."""
        if self._skipped:
            print(f"skipped: {self._skipped}", flush=True)
        there = list(whole_shards(self._folder, self._index))
        if len(there) < self._index.shards:
            print(f"{self._folder}: {len(there)} of {self._index.shards} shards; other processes make the rest.")
            return
        size = sum(shard_path(self._folder, shard).stat().st_size for shard in there)
        ignored = f"; ignored: {self._index.ignored}" if self._index.ignored else ""
        print(
            f"{self._folder}: {self._index.records:,} records in {self._index.shards} shards, {size / 1e9:.3g} GB, "
            f"{size / self._index.records / 1e6:.3g} MB each{ignored}. Train with --data.cache {self._folder}",
            flush=True,
        )
