"""What drawing a benchmark tells: what is there already, pictures per second, the time left, and who judges them."""

import time
from datetime import timedelta
from pathlib import Path

from .manifest import MANIFEST_FILE, Manifest

QUIET_SECONDS = 5.0
"""Lines of progress are at least this far apart."""


class Progress:
    """Tells how far all processes are. Only the first one tells it.

    Args:
        rank: which process this is.
    """

    def __init__(self, rank: int) -> None:
        self._rank, self._left = rank, 0

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
        self._left = left
        count, published = manifest.prompts.count, manifest.prompts.published
        of = "" if published in (None, count) else f" of {published:,}"
        self.say(f"{manifest.benchmark}: {count:,}{of} prompts, {pictures:,} pictures.")
        if manifest.preset:
            self.say(f"sampling: the preset {manifest.preset}, where nothing else is set.")
        if left < pictures:
            self.say(f"{manifest.folder}: {pictures - left:,} pictures are there and kept.")

    def start(self) -> None:
        """Start the clock."""
        self._since = self._last = time.monotonic()

    def count(self, done: int) -> None:
        """Tell now and then that so many pictures are drawn."""
        now = time.monotonic()
        if now - self._last >= QUIET_SECONDS or done == self._left:
            self._last = now
            rate = done / max(now - self._since, 1e-9)
            eta = timedelta(seconds=round((self._left - done) / rate))
            self.say(f"{done:,} of {self._left:,} pictures, {rate:.3g} pictures/s, ETA {eta}")

    def end(self, manifest: Manifest, out: Path) -> None:
        """Say who judges the pictures, and by which command."""
        self.say(f"judge: {manifest.judge}. {out / MANIFEST_FILE} holds what a score has to name beside it.")
        commands = " && ".join(manifest.next)
        self.say(f"{manifest.folder} is for {manifest.benchmark}. Next, in a copy of its repository: {commands}")
