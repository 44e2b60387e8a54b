"""Plans, fills and builds packs ahead of the training step, in an order that only the settings decide.

The data of a step is cut into `packs_per_step` lanes, whatever the number of processes: lane l of L takes every L-th
record of each epoch's order, starting with the l-th. A process serves some of the lanes. So packs, and a resumed run,
do not depend on processes, threads or prefetching.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.data.images import BadRecord
from reca_fast.data.outcomes import Count, Outcomes, Report, SavedOutcomes, Skip, describe
from reca_fast.data.packing import Packer
from reca_fast.data.prompts import stable_uniform
from reca_fast.data.samples import NoCaption, SampleBuilder, SamplePlan
from reca_fast.data.sources.base import Source
from reca_fast.data.tally import Reasons
from reca_fast.errors import UserError
from reca_fast.flow import Sample
from reca_fast.schema import check_ranges

T = TypeVar("T")


@dataclass(frozen=True)
class Pack(Generic[T]):
    """One packed batch of a lane."""

    lane: int
    number: int  # counts the lane's packs from 0, over resumes too
    payload: T  # what collate made of the samples
    keys: tuple[str, ...]  # of the samples, in the payload's order
    num_tokens: int  # as planned, samples that failed to decode left out


@dataclass
class Position:
    """Where a lane goes on."""

    epoch: Count
    position: Count  # in the epoch's order: the record to be planned next
    waiting: list[tuple[Count, Count]]  # (record, epoch) of the planned samples that wait for a pack


@dataclass
class LaneState:
    """A lane after a pack, as it stands in JSON."""

    packs_per_step: Count
    records: Count
    next: Position
    outcomes: SavedOutcomes

    def __post_init__(self) -> None:
        if self.next.position > self.records or any(record >= self.records for record, _ in self.next.waiting):
            raise ValueError(f"it stands beyond its {self.records} records")


@lru_cache(maxsize=2)  # neighbouring epochs: lanes do not change epochs at the same moment
def epoch_order(records: int, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Record numbers int64 [records] in the order of one epoch."""
    if not shuffle:
        return torch.arange(records)
    generator = torch.Generator().manual_seed(int(stable_uniform("order", seed, epoch) * 2**53))
    return torch.randperm(records, generator=generator)


class _Built(NamedTuple):
    """A pack whose pictures are decoded; the payload is None when none was usable."""

    payload: Any
    good: list[SamplePlan]
    skipped: list[Skip]


class _Draft(NamedTuple):
    """A pack that is planned and being built, what planning skipped on the way, and where the lane goes on."""

    skipped: list[Skip]
    position: Position
    built: "Future[_Built]"


class _InVain:
    """Skips since the last usable record; they end the run after `visits` that met `records` different ones."""

    def __init__(self, records: int, visits: int, config: DataConfig) -> None:
        self._records, self._visits, self._config = records, visits, config
        self.clear()

    def clear(self) -> None:
        self._made, self._skips = 0, dict[int, Skip]()

    def add(self, skip: Skip) -> None:
        self._made += 1
        self._skips[skip.index] = skip
        if self._made >= self._visits and len(self._skips) >= self._records:
            raise UserError(_nothing_usable(list(self._skips.values()), self._config))


class _Lane:
    """One lane's endless stream of plans and its packer; used by one thread at a time."""

    def __init__(self, number: int, source: Source, builder: SampleBuilder, config: DataConfig) -> None:
        self._number, self._source, self._builder, self._config = number, source, builder, config
        self._epoch = self._position = 0  # the record to be planned next
        self._skipped: list[Skip] = []  # since the last pack
        self._packer: Packer[SamplePlan] = Packer(config.tokens_per_pack, config.lookahead)
        self._stream = self._plans()
        self._in_vain = self.watch()

    def load(self, saved: Position) -> None:
        """Go on from there; the buffer's plans are made anew from their records."""
        self._epoch, self._position = saved.epoch, saved.position
        plans = (self._plan(index, epoch) for index, epoch in saved.waiting)
        self._packer.waiting = [plan for plan in plans if plan]

    def next_pack(self) -> tuple[list[SamplePlan], list[Skip], Position]:
        """Plans of the next pack, what was skipped before it was full, and where to go on.

        Raises UserError when no record is usable.
        """
        plans = self._packer.next_pack(self._stream)
        skipped, self._skipped = self._skipped, []
        waiting = [(plan.index, plan.epoch) for plan in self._packer.waiting]
        return plans, skipped, Position(self._epoch, self._position, waiting)

    def _plans(self) -> Iterator[SamplePlan]:
        while True:
            items = self._items(self._epoch)
            while self._position < len(items):
                index = int(items[self._position])
                self._position += 1
                if plan := self._plan(index, self._epoch):
                    self._in_vain.clear()
                    yield plan
            self._epoch, self._position = self._epoch + 1, 0

    def _plan(self, index: int, epoch: int) -> SamplePlan | None:
        """The plan for a record, or None with the reason noted."""
        try:
            record = self._source.read(index)  # its bytes are dropped again: a buffer of plans stays small
            width, height = self._builder.picture_size(record.image)
            plan = self._builder.plan(index, record.key, width, height, record.caption, epoch, lack=record.lack)
            for option in _limits_below(plan.num_tokens, self._config):
                self._skip(Skip(index, epoch, record.key, f"longer than {option}", plan.num_tokens))
                return None
            return plan
        except BadRecord as bad:
            lacks_caption = isinstance(bad, NoCaption)
            self._skip(Skip(index, epoch, self._source.key(index), bad.reason, lacks_caption=lacks_caption))
            return None

    def _skip(self, skip: Skip) -> None:
        self._skipped.append(skip)
        self._in_vain.add(skip)

    def watch(self) -> "_InVain":
        """Gives up when no record of this lane can be used."""
        records, length = len(self._source), len(self._items(0))
        others_come = length < records and self._config.shuffle  # in the next epochs
        return _InVain(length, min(20 * records, 1000) if others_come else length, self._config)

    def _items(self, epoch: int) -> Tensor:
        records, lanes = len(self._source), self._config.packs_per_step
        order = epoch_order(records, self._config.seed, epoch, self._config.shuffle)
        return order[self._number % records :: lanes]  # fewer records than lanes: some lanes share one


class PackLoader(Generic[T]):
    """Endless iterator over steps: `next()` gives one Pack for each of this process's lanes, in lane order.

    `collate` makes a payload of a pack's samples; it runs in a worker thread, as decoding and resizing do. Errors in
    threads are raised by `next()`. Close the loader, or use it in a `with`, to end its threads.
    """

    def __init__(
        self,
        source: Source,
        builder: SampleBuilder,
        config: DataConfig,
        collate: Callable[[list[Sample]], T],
        lanes: Sequence[int],
    ) -> None:
        if len(source) == 0:
            raise UserError("data.source holds no records.")
        check_ranges(config, "data.")
        if not lanes or any(not 0 <= lane < config.packs_per_step for lane in lanes):
            raise ValueError(f"lanes {list(lanes)}: expected some of 0 to {config.packs_per_step - 1}")
        self._source, self._builder, self._config, self._collate = source, builder, config, collate
        self._lanes = {lane: _Lane(lane, source, builder, config) for lane in sorted(lanes)}
        self._drafts: dict[int, deque[Future[_Draft]]] = {lane: deque() for lane in self._lanes}
        self._ahead = -(-config.prefetch // len(self._lanes))  # packs of each lane beyond the one asked for
        self._outcomes = {lane: Outcomes(len(source)) for lane in self._lanes}
        self._in_vain = {number: lane.watch() for number, lane in self._lanes.items()}
        self._positions: dict[int, Position] = {}  # after the packs handed out
        # One thread plans, so that lanes need no locks; pictures are decoded and collated by the others.
        self._planner = ThreadPoolExecutor(1, "reca-plan")
        self._workers = ThreadPoolExecutor(config.workers, "reca-decode")

    def __iter__(self) -> "PackLoader[T]":
        return self

    def __next__(self) -> list[Pack[T]]:
        for depth in range(1, self._ahead + 2):
            for lane, drafts in self._drafts.items():
                if len(drafts) < depth:
                    self._order_draft(lane)
        return [self._next_pack(lane) for lane in self._lanes]

    def __enter__(self) -> "PackLoader[T]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def summary(self) -> str:
        """One line: how many records were used, how many were skipped and why, what was ignored, with examples."""
        return describe([self.report()])

    def report(self) -> Report:
        """What `describe` says, so that the reports of several processes can be brought together."""
        lanes = [outcomes.state() for outcomes in self._outcomes.values()]
        return Report(len(self._source), lanes, self._source.ignored)

    def state_dict(self) -> dict[str, LaneState]:
        """{lane: its state after the last pack handed out}. A saved run joins the dicts of all processes."""
        packs_per_step, records = self._config.packs_per_step, len(self._source)
        return {
            str(lane): LaneState(packs_per_step, records, position, self._outcomes[lane].state())
            for lane, position in self._positions.items()
        }

    def load_state_dict(self, saved: Mapping[str, LaneState]) -> None:
        """Go on where the saved lanes stopped; states of lanes that this process does not serve are left alone.

        Call it before the first `next()`. Raises UserError when packs_per_step or the data's size has changed, and for
        damaged marks.
        """
        if any(self._drafts.values()):
            raise RuntimeError("load_state_dict comes before the first pack")
        for state in saved.values():
            if state.packs_per_step != self._config.packs_per_step:
                raise UserError(
                    f"The saved run had data.packs_per_step {state.packs_per_step}, now it is "
                    f"{self._config.packs_per_step}; set it back to resume."
                )
            if state.records != len(self._source):
                raise UserError(
                    f"The saved run had {state.records} records, data.source now has "
                    f"{len(self._source)}; resume with the same data."
                )
        if not saved:  # saved before the first pack
            return
        if missing := [lane for lane in self._lanes if str(lane) not in saved]:
            raise UserError(f"The saved run has no data state for lanes {missing}; it was saved incompletely.")
        for number, lane in self._lanes.items():
            state = saved[str(number)]
            try:
                self._outcomes[number].load(state.outcomes)
            except ValueError as error:
                raise UserError(f"The saved lane {number} is damaged: {error}.") from None
            lane.load(state.next)
            self._positions[number] = state.next

    def close(self) -> None:
        """End the threads; work not yet begun is dropped."""
        self._planner.shutdown(wait=True, cancel_futures=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _order_draft(self, lane: int) -> None:
        self._drafts[lane].append(self._planner.submit(self._start, self._lanes[lane]))

    def _start(self, lane: _Lane) -> _Draft:
        """In the planning thread: plan a pack and hand its pictures to the workers."""
        plans, skipped, position = lane.next_pack()
        outcomes = [self._workers.submit(self._build, plan) for plan in plans]
        # Workers take tasks in order, so this one begins when all its samples have begun: waiting cannot lock up.
        return _Draft(skipped, position, self._workers.submit(self._join, plans, outcomes))

    def _build(self, plan: SamplePlan) -> Sample | BadRecord:
        try:
            return self._builder.build(self._source.read(plan.index), plan)
        except BadRecord as bad:
            return bad

    def _join(self, plans: list[SamplePlan], outcomes: "list[Future[Sample | BadRecord]]") -> _Built:
        samples, good, skipped = [], [], []
        for plan, future in zip(plans, outcomes, strict=True):
            outcome = future.result()
            if isinstance(outcome, BadRecord):
                skipped.append(Skip(plan.index, plan.epoch, plan.key, outcome.reason))
            else:
                samples.append(outcome)
                good.append(plan)
        return _Built(self._collate(samples) if samples else None, good, skipped)

    def _next_pack(self, lane: int) -> Pack[T]:
        """The lane's next pack that kept a sample. Counting happens here, in the order in which packs go out."""
        while True:
            if not self._drafts[lane]:
                self._order_draft(lane)
            draft = self._drafts[lane].popleft().result()
            built = draft.built.result()
            for skip in (*draft.skipped, *built.skipped):
                self._outcomes[lane].skip(skip)
                if not built.good:
                    self._in_vain[lane].add(skip)
            for plan in built.good:
                self._outcomes[lane].use(plan)
            if built.good:
                self._in_vain[lane].clear()
                self._positions[lane] = draft.position
                return self._handed_out(lane, built)

    def _handed_out(self, lane: int, built: _Built) -> Pack[T]:
        number = self._outcomes[lane].packs
        self._outcomes[lane].packs += 1
        keys = tuple(plan.key for plan in built.good)
        return Pack(lane, number, built.payload, keys, sum(plan.num_tokens for plan in built.good))


def _limits_below(tokens: int, config: DataConfig) -> list[str]:
    """The options that refuse a sample of so many tokens."""
    limits = ("max_tokens_per_sample", "tokens_per_pack")
    return [f"data.{option}" for option in limits if getattr(config, option) < tokens]


def _nothing_usable(skipped: list[Skip], config: DataConfig) -> str:
    reasons, ways = Reasons(), []
    for skip in skipped:
        reasons.add(skip.reason, skip.key)
    if lengths := [skip.tokens for skip in skipped if skip.tokens]:
        needed = min(lengths)
        options = " and ".join(_limits_below(needed, config))
        ways.append(f"Raise {options} to at least {needed}, which the shortest sample needs.")
    if without_caption := sum(skip.lacks_caption for skip in skipped):
        ways.append("Add captions, or give data.tasks.reca a weight.")
    if len(lengths) + without_caption < len(skipped):
        ways.append("Check data.source.")
    if config.packs_per_step > 1 and not config.shuffle:
        ways.append(
            "Each of the data.packs_per_step has its own share of the records: with a lower number it is larger."
        )
    return f"None of {len(skipped)} records could be used: {reasons}. {' '.join(ways)}"
