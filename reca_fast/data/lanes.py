"""One lane of the data: which records it plans, in which order, and where it goes on when a run is resumed.

There are `data.packs_per_step` lanes, whatever the number of processes, and each gives one pack to every step. L lanes
share a stream of records: each takes every L-th one in the order of an epoch. Each process serves some of the lanes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.data.joined import conversations_in
from reca_fast.data.outcomes import Count, SavedOutcomes
from reca_fast.data.packing import Packer
from reca_fast.data.records import BadRecord, NoCaption
from reca_fast.data.samples import SampleBuilder, SamplePlan
from reca_fast.data.skips import Patience, Skip, limits_below
from reca_fast.data.sources.base import Source
from reca_fast.data.streams import Stream, open_streams, task_of_pack
from reca_fast.randomness import stable_uniform


@dataclass
class StreamPosition:
    """Where a lane goes on in one of its streams."""

    epoch: Count  # of the record to be planned next
    position: Count  # its place among the lane's records of that epoch


@dataclass
class Position:
    """Where a lane goes on."""

    number: Count  # of the pack to be planned next, from the start of the run; packs that lost every sample count too
    drawn: Count  # how many samples were planned, from the start of the run
    streams: dict[str, StreamPosition]
    waiting: dict[str, list[tuple[Count, Count]]]
    """Task -> (record, epoch) of the planned samples that wait for a pack of that task; "" where any pack will do."""


@dataclass
class LaneState:
    """The state of a lane after a pack, as it stands in JSON. The first two values must be the same on resume."""

    packs_per_step: Count
    records: Count
    next: Position
    outcomes: SavedOutcomes

    def __post_init__(self) -> None:
        at = [stream.position for stream in self.next.streams.values()]
        waiting = [record for plans in self.next.waiting.values() for record, _ in plans]
        if any(position > self.records for position in at) or any(record >= self.records for record in waiting):
            raise ValueError(f"it stands beyond its {self.records} records")


class PlannedPack(NamedTuple):
    """A pack of a lane whose samples are chosen, but not yet decoded."""

    number: int  # its place among the lane's packs, from which its random numbers follow
    task: str  # that all its samples serve; "" where they serve several
    plans: list[SamplePlan]
    skipped: list[Skip]  # records that were left out before it was full
    after: Position  # where the lane goes on


class _Course:
    """A lane's way through a stream."""

    def __init__(self, stream: Stream, patience: Patience) -> None:
        self.stream, self.patience = stream, patience
        self.epoch = self.position = 0  # of the record to be planned next


class Lane:
    """Plans the packs of one lane, endlessly. One thread at a time may use it.

    Args:
        number: which lane it is, from 0.
        source: where records come from.
        builder: plans their samples.
        config: tokens of a pack, number of lanes, order of the data, how tasks are mixed.
    """

    def __init__(self, number: int, source: Source, builder: SampleBuilder, config: DataConfig) -> None:
        self.number, self._source, self._builder, self._config = number, source, builder, config
        self._pack = self._drawn = 0  # the pack to be planned next; how many samples were planned
        self._skipped: list[Skip] = []  # since the last pack
        streams = open_streams(config, len(source), conversations_in(source))
        self._courses = {
            stream.name: _Course(stream, self._patience([stream])) for stream in streams if number in stream.lanes
        }
        self._packers: dict[str, Packer[SamplePlan]] = {}
        self._plans: dict[str, Iterator[SamplePlan]] = {}
        for task in self._tasks():
            self._packers[task] = Packer(config.tokens_per_pack, config.lookahead)
            self._plans[task] = self._mixed(self._courses_of(task))

    def resume(self, saved: Position) -> None:
        """Go on where a saved lane stopped. The samples that waited for a pack are planned anew.

        Raises:
            ValueError: the lane was saved with other streams.
        """
        if saved.streams.keys() != self._courses.keys() or not saved.waiting.keys() <= self._packers.keys():
            raise ValueError("it belongs to other settings of data.tasks, data.mix or data.instructions")
        self._pack, self._drawn = saved.number, saved.drawn
        for name, at in saved.streams.items():
            self._courses[name].epoch, self._courses[name].position = at.epoch, at.position
        for task, waiting in saved.waiting.items():
            plans = (self._plan(index, epoch, self._course(task, index)) for index, epoch in waiting)
            self._packers[task].waiting = [plan for plan in plans if plan]

    def next_pack(self) -> PlannedPack:
        """Plan the next pack.

        Raises:
            UserError: no record is usable.
        """
        task = task_of_pack(self._config, self.number, self._pack)
        plans = self._packers[task].next_pack(self._plans[task])
        skipped, self._skipped = self._skipped, []
        number, self._pack = self._pack, self._pack + 1
        streams = {name: StreamPosition(course.epoch, course.position) for name, course in self._courses.items()}
        waiting = {
            task: [(plan.index, plan.epoch) for plan in packer.waiting]
            for task, packer in self._packers.items()
            if packer.waiting
        }
        return PlannedPack(number, task, plans, skipped, Position(self._pack, self._drawn, streams, waiting))

    def watch(self, task: str) -> Patience:
        """What ends the run when no record can be used of those that the lane's packs of a task are made of."""
        return self._patience([course.stream for course in self._courses_of(task)])

    def _tasks(self) -> Sequence[str]:
        return list(self._courses) if self._config.mix == "pack" else [""]

    def _courses_of(self, task: str) -> list[_Course]:
        return [self._courses[task]] if task else list(self._courses.values())

    def _course(self, task: str, index: int) -> _Course:
        courses = self._courses_of(task)
        return next((course for course in courses if index in course.stream.records), courses[0])

    def _mixed(self, courses: Sequence[_Course]) -> Iterator[SamplePlan]:
        """The samples of several streams, drawn by their weights."""
        plans = [self._usable(course) for course in courses]
        weights = [sum(course.stream.weights.values()) for course in courses]
        while True:
            chosen = 0
            if len(courses) > 1:
                point = stable_uniform("stream", self._config.seed, self.number, self._drawn) * sum(weights)
                chosen = int(point >= weights[0])  # there are two at most
            self._drawn += 1
            yield next(plans[chosen])

    def _usable(self, course: _Course) -> Iterator[SamplePlan]:
        while True:
            items = self._items(course.stream, course.epoch)
            while course.position < len(items):
                index = int(items[course.position])
                course.position += 1
                if plan := self._plan(index, course.epoch, course):
                    course.patience.clear()
                    yield plan
            course.epoch, course.position = course.epoch + 1, 0

    def _plan(self, index: int, epoch: int, course: _Course) -> SamplePlan | None:
        """The plan for a record; None, with the reason noted, when it cannot be used."""
        try:
            record = self._source.read(index)  # its bytes are not kept, so that waiting plans take little memory
            size = self._builder.size_of(record)
            plan = self._builder.plan(
                *(index, record.key, size, record.caption, epoch),
                lack=record.lack,
                turns=record.turns,
                weights=course.stream.weights,
            )
            for option in limits_below(plan.num_tokens, self._config):
                self._skip(Skip(index, epoch, record.key, f"longer than {option}", plan.num_tokens), course)
                return None
            return plan
        except BadRecord as bad:
            lacks_caption = isinstance(bad, NoCaption)
            key = self._source.key(index)
            self._skip(Skip(index, epoch, key, bad.reason, lacks_caption=lacks_caption), course)
            return None

    def _skip(self, skip: Skip, course: _Course) -> None:
        self._skipped.append(skip)
        course.patience.add(skip)

    def _patience(self, streams: Sequence[Stream]) -> Patience:
        records = sum(len(stream.records) for stream in streams)
        length = sum(len(self._items(stream, 0)) for stream in streams)
        others_come = length < records and self._config.shuffle  # the next epochs bring this lane others
        visits = min(20 * records, 1000) if others_come else length
        return Patience(length, visits, self._config, " and ".join({stream.setting: None for stream in streams}))

    def _items(self, stream: Stream, epoch: int) -> Tensor:
        return stream.items(self.number, self._config, epoch)
