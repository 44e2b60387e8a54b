"""Some records of a source: the first so many of a shuffle that depends on the seed alone (`data.limit`)."""

import torch

from reca_fast.data.records import Record
from reca_fast.data.sources.base import Source
from reca_fast.randomness import generator


class LimitedSource:
    """As many records of a source as asked for, in the source's own order.

    A smaller limit takes a part of what a larger one takes, under the same seed.

    Args:
        base: the whole source, with more records than are taken.
        limit: how many of its first records are drawn from.
        seed: decides which they are (`data.seed`).
        last: how many of the last records are kept whatever the limit, and not drawn from.
    """

    def __init__(self, base: Source, limit: int, seed: int, last: int = 0) -> None:
        self.base, self.ignored = base, base.ignored
        pictures = len(base) - last
        drawn = torch.randperm(pictures, generator=generator("limit", seed))[:limit].sort().values
        self._taken = torch.cat((drawn, torch.arange(pictures, len(base)))).numpy()

    def __len__(self) -> int:
        return len(self._taken)

    def key(self, index: int) -> str:
        return self.base.key(int(self._taken[index]))

    def size(self, index: int) -> int:
        return self.base.size(int(self._taken[index]))

    def read(self, index: int) -> Record:
        return self.base.read(int(self._taken[index]))
