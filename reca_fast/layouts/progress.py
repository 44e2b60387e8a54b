"""What drawing a benchmark tells: what is there already, pictures per second, the time left, and who judges them."""

import time
from datetime import timedelta
from pathlib import Path

from .manifest import MANIFEST_FILE, Manifest

QUIET_SECONDS = 5.0
"""Lines of progress are at least this far apart."""


class Progress:
    """Tells how far one process is with its share. Of several processes only the first one tells: the others have as
    much to do.

    Args:
        rank, world: which process this is, of how many.
    """

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world, self._done, self._pictures = rank, world, 0, 0

    def say(self, line: str) -> None:
        """Print a line, from the first process."""
        if self._rank == 0:
            print(line, flush=True)

    def begin(self, manifest: Manifest, pictures: int, left: int) -> None:
        """Say what the benchmark is, and what of it is drawn already.

        Args:
            pictures: of the benchmark.
            left: those of them that are still to be drawn.
        """
        count, published = manifest.prompts.count, manifest.prompts.published
        of = "" if published in (None, count) else f" of {published:,}"
        self.say(f"{manifest.benchmark}: {count:,}{of} prompts, {pictures:,} pictures.")
        if left < pictures:
            self.say(f"{manifest.folder}: {pictures - left:,} pictures are there and kept.")

    def start(self, pictures: int) -> None:
        """Start the clock of this process, which has so many pictures to draw."""
        self._pictures = pictures
        self._since = self._last = time.monotonic()

    def count(self, pictures: int) -> None:
        """Note that so many more of them are drawn, and tell it now and then."""
        self._done += pictures
        now = time.monotonic()
        if now - self._last >= QUIET_SECONDS or self._done == self._pictures:
            self._last = now
            rate = self._done / max(now - self._since, 1e-9)
            left = timedelta(seconds=round((self._pictures - self._done) / rate))
            others = f" in each of {self._world} processes" if self._world > 1 else ""
            self.say(f"{self._done:,} of {self._pictures:,} pictures, {rate:.3g} pictures/s{others}, ETA {left}")

    def end(self, manifest: Manifest, out: Path) -> None:
        """Say who judges the pictures, and by which command."""
        self.say(f"judge: {manifest.judge}. {out / MANIFEST_FILE} holds what a score has to name beside it.")
        self.say(f"{manifest.folder} is the folder for {manifest.benchmark}: {' && '.join(manifest.next)}")
