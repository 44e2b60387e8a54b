"""One lane of the data: which records it plans, in which order, and where it goes on when a run is resumed.

There are `data.packs_per_step` lanes, whatever the number of processes, and each gives one pack to every step. Lane l
of L takes every L-th record in the order of an epoch, starting with the l-th. Each process serves some of the lanes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.data.outcomes import Count, SavedOutcomes
from reca_fast.data.packing import Packer
from reca_fast.data.records import BadRecord, NoCaption
from reca_fast.data.samples import SampleBuilder, SamplePlan
from reca_fast.data.skips import Patience, Skip, limits_below
from reca_fast.data.sources.base import Source
from reca_fast.randomness import generator


@dataclass
class Position:
    """Where a lane goes on."""

    number: Count  # of the pack to be planned next, from the start of the run; packs that lost every sample count too
    epoch: Count  # of the record to be planned next
    position: Count  # its place in the order of the epoch
    waiting: list[tuple[Count, Count]]  # (record, epoch) of the planned samples that wait for a pack


@dataclass
class LaneState:
    """The state of a lane after a pack, as it stands in JSON. The first two values must be the same on resume."""

    packs_per_step: Count
    records: Count
    next: Position
    outcomes: SavedOutcomes

    def __post_init__(self) -> None:
        if self.next.position > self.records or any(record >= self.records for record, _ in self.next.waiting):
            raise ValueError(f"it stands beyond its {self.records} records")


@lru_cache(maxsize=2)  # two epochs, because lanes do not reach the next one at the same moment
def epoch_order(records: int, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Record numbers int64 [records] in the order of one epoch."""
    if not shuffle:
        return torch.arange(records)
    return torch.randperm(records, generator=generator("order", seed, epoch))


class PlannedPack(NamedTuple):
    """A pack of a lane whose samples are chosen, but not yet decoded."""

    number: int  # its place among the lane's packs, from which its random numbers follow
    plans: list[SamplePlan]
    skipped: list[Skip]  # records that were left out before it was full
    after: Position  # where the lane goes on


class Lane:
    """Plans the packs of one lane, endlessly. One thread at a time may use it.

    Args:
        number: which lane it is, from 0.
        source: where records come from.
        builder: plans their samples.
        config: tokens of a pack, number of lanes, order of the data.
    """

    def __init__(self, number: int, source: Source, builder: SampleBuilder, config: DataConfig) -> None:
        self.number, self._source, self._builder, self._config = number, source, builder, config
        self._pack = 0  # the pack to be planned next
        self._epoch = self._position = 0  # the record to be planned next
        self._skipped: list[Skip] = []  # since the last pack
        self._packer: Packer[SamplePlan] = Packer(config.tokens_per_pack, config.lookahead)
        self._stream = self._plans()
        self._patience = self.watch()

    def resume(self, saved: Position) -> None:
        """Go on where a saved lane stopped. The samples that waited for a pack are planned anew."""
        self._pack, self._epoch, self._position = saved.number, saved.epoch, saved.position
        plans = (self._plan(index, epoch) for index, epoch in saved.waiting)
        self._packer.waiting = [plan for plan in plans if plan]

    def next_pack(self) -> PlannedPack:
        """Plan the next pack.

        Raises:
            UserError: no record is usable.
        """
        plans = self._packer.next_pack(self._stream)
        skipped, self._skipped = self._skipped, []
        number, self._pack = self._pack, self._pack + 1
        waiting = [(plan.index, plan.epoch) for plan in self._packer.waiting]
        return PlannedPack(number, plans, skipped, Position(self._pack, self._epoch, self._position, waiting))

    def _plans(self) -> Iterator[SamplePlan]:
        while True:
            items = self._items(self._epoch)
            while self._position < len(items):
                index = int(items[self._position])
                self._position += 1
                if plan := self._plan(index, self._epoch):
                    self._patience.clear()
                    yield plan
            self._epoch, self._position = self._epoch + 1, 0

    def _plan(self, index: int, epoch: int) -> SamplePlan | None:
        """The plan for a record; None, with the reason noted, when it cannot be used."""
        try:
            record = self._source.read(index)  # its bytes are not kept, so that waiting plans take little memory
            size = self._builder.size_of(record)
            plan = self._builder.plan(index, record.key, size, record.caption, epoch, lack=record.lack)
            for option in limits_below(plan.num_tokens, self._config):
                self._skip(Skip(index, epoch, record.key, f"longer than {option}", plan.num_tokens))
                return None
            return plan
        except BadRecord as bad:
            lacks_caption = isinstance(bad, NoCaption)
            self._skip(Skip(index, epoch, self._source.key(index), bad.reason, lacks_caption=lacks_caption))
            return None

    def _skip(self, skip: Skip) -> None:
        self._skipped.append(skip)
        self._patience.add(skip)

    def watch(self) -> Patience:
        """What ends the run when no record of this lane can be used."""
        records, length = len(self._source), len(self._items(0))
        others_come = length < records and self._config.shuffle  # the next epochs bring this lane others
        return Patience(length, min(20 * records, 1000) if others_come else length, self._config)

    def _items(self, epoch: int) -> Tensor:
        records, lanes = len(self._source), self._config.packs_per_step
        order = epoch_order(records, self._config.seed, epoch, self._config.shuffle)
        return order[self.number % records :: lanes]  # with fewer records than lanes, some lanes share one
