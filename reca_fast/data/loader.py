"""The loader: threads plan, decode and collate packs ahead of the training step.

Which packs come, and every number in them, depends on the settings alone and not on processes, threads or prefetching.
`lanes.py` decides what is in a pack; its random numbers follow from the seed, the lane and the pack's number in it.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import torch

from reca_fast.config import DataConfig
from reca_fast.data.lanes import Lane, LaneState, PlannedPack, Position
from reca_fast.data.outcomes import Outcomes, Report, describe
from reca_fast.data.records import BadRecord
from reca_fast.data.samples import SampleBuilder, SamplePlan
from reca_fast.data.skips import Patience, Skip
from reca_fast.data.sources.base import Source
from reca_fast.errors import UserError
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import Sample
from reca_fast.schema import check_ranges

T = TypeVar("T")


class Served(NamedTuple):
    """What of a pack serves one task. A sample that serves several counts for each."""

    samples: int
    tokens: int  # of these samples, with or without a loss


def served_by(samples: Sequence[tuple[Sequence[str], int]]) -> dict[str, Served]:
    """Task -> what serves it, of samples that come as their tasks and their tokens."""
    found: dict[str, Served] = {}
    for tasks, tokens in samples:
        for task in tasks:
            before = found.get(task, Served(0, 0))
            found[task] = Served(before.samples + 1, before.tokens + tokens)
    return found


@dataclass(frozen=True)
class Pack(Generic[T]):
    """One pack of a lane, ready for the step."""

    lane: int
    number: int  # its place among the lane's packs, counted over resumes
    batch: T  # what collate made of the samples
    keys: tuple[str, ...]  # of the samples, in the order of the batch
    num_tokens: int  # as planned, without the samples whose picture could not be decoded
    served: Mapping[str, Served] = field(default_factory=dict)  # task -> what serves it
    copy: T | None = None  # the batch on the step's device already, where the loader was asked for that


class _Built(NamedTuple, Generic[T]):
    """A pack whose pictures are decoded."""

    batch: T | None  # None when no sample was usable
    copy: T | None
    good: list[SamplePlan]  # of the samples in the batch
    skipped: list[Skip]  # samples whose picture could not be decoded


class _Draft(NamedTuple, Generic[T]):
    """A pack that is planned, and that worker threads are building."""

    planned: PlannedPack
    built: "Future[_Built[T]]"


class PackLoader(Generic[T]):
    """Endless iterator over steps: `next()` gives one Pack for each lane that this process serves, in their order.

    An exception in a thread is raised by `next()`. Use the loader in a `with`, or close it, to end its threads.

    Args:
        source: where records come from.
        builder: makes samples of them.
        config: the settings of the data.
        collate: makes a batch of a pack's samples and draws every random number of the step from the generator that it
            is given. It runs in a worker thread.
        lanes: the lanes that this process serves, from 0 to `config.packs_per_step` - 1.
        seed: the seed of the run, from which the random numbers of each pack follow.
        copy: gives each batch once more on the step's device, in a worker thread; None where there is nothing to copy.

    Raises:
        UserError: the source is empty, or a setting is out of range.
    """

    def __init__(
        self,
        source: Source,
        builder: SampleBuilder,
        config: DataConfig,
        collate: Callable[[list[Sample], torch.Generator], T],
        lanes: Sequence[int],
        seed: int = 0,
        copy: Callable[[T], T | None] = lambda batch: None,
    ) -> None:
        if len(source) == 0:
            raise UserError("data.source holds no records.")
        check_ranges(config, "data.")
        if not lanes or any(not 0 <= lane < config.packs_per_step for lane in lanes):
            raise ValueError(f"lanes {list(lanes)}: expected some of 0 to {config.packs_per_step - 1}")
        self._source, self._builder, self._config, self._collate, self._seed = source, builder, config, collate, seed
        self._copy = copy
        self._lanes = {lane: Lane(lane, source, builder, config) for lane in sorted(lanes)}
        self._drafts: dict[int, deque[Future[_Draft[T]]]] = {lane: deque() for lane in self._lanes}
        self._ahead = -(-config.prefetch // len(self._lanes))  # packs of each lane beyond the one asked for
        self._outcomes = {lane: Outcomes(len(source)) for lane in self._lanes}
        self._patience: dict[tuple[int, str], Patience] = {}  # lane and task of its packs, once one lost every sample
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
        """One line that says how many records were used, and how many were skipped or ignored and why."""
        return describe([self.report()])

    def report(self) -> Report:
        """The outcomes in this process, for `describe`, which brings those of all processes together."""
        lanes = [outcomes.state() for outcomes in self._outcomes.values()]
        return Report(len(self._source), lanes, self._source.ignored)

    def state_dict(self) -> dict[str, LaneState]:
        """Number of each lane -> its state after the last pack handed out. A saved run holds those of all processes."""
        packs_per_step, records = self._config.packs_per_step, len(self._source)
        return {
            str(lane): LaneState(packs_per_step, records, position, self._outcomes[lane].state())
            for lane, position in self._positions.items()
        }

    def load_state_dict(self, saved: Mapping[str, LaneState]) -> None:
        """Go on where the saved lanes stopped. Lanes that this process does not serve are passed over.

        Raises:
            RuntimeError: `next()` was called before.
            UserError: `packs_per_step` or the number of records is another than then, or the state is damaged.
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
                self._outcomes[number].merge(state.outcomes)
                lane.resume(state.next)
            except ValueError as error:
                raise UserError(f"The saved lane {number} is damaged: {error}.") from None
            self._positions[number] = state.next

    def close(self) -> None:
        """End the threads. Work that has begun is waited for, the rest is dropped."""
        self._planner.shutdown(wait=True, cancel_futures=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _order_draft(self, lane: int) -> None:
        self._drafts[lane].append(self._planner.submit(self._start, self._lanes[lane]))

    def _start(self, lane: Lane) -> _Draft[T]:
        """In the planning thread: plan a pack and hand its pictures to the workers."""
        planned = lane.next_pack()
        outcomes = [self._workers.submit(self._build, plan) for plan in planned.plans]
        # Workers take their work in order: when this begins, all samples of the pack have begun, so its waiting ends.
        draw = draw_of_pack(self._seed, lane.number, planned.number)
        return _Draft(planned, self._workers.submit(self._join, planned.plans, outcomes, draw))

    def _build(self, plan: SamplePlan) -> Sample | BadRecord:
        try:
            return self._builder.build(self._source.read(plan.index), plan)
        except BadRecord as bad:
            return bad

    def _join(
        self, plans: list[SamplePlan], outcomes: "list[Future[Sample | BadRecord]]", draw: torch.Generator
    ) -> _Built[T]:
        samples, good, skipped = [], [], []
        for plan, future in zip(plans, outcomes, strict=True):
            outcome = future.result()
            if isinstance(outcome, BadRecord):
                skipped.append(Skip(plan.index, plan.epoch, plan.key, outcome.reason))
            else:
                samples.append(outcome)
                good.append(plan)
        batch = self._collate(samples, draw) if samples else None
        return _Built(batch, None if batch is None else self._copy(batch), good, skipped)

    def _next_pack(self, lane: int) -> Pack[T]:
        """The lane's next pack that kept a sample. Counting happens here, in the order in which packs go out."""
        while True:
            if not self._drafts[lane]:
                self._order_draft(lane)
            draft = self._drafts[lane].popleft().result()
            built = draft.built.result()
            for skip in (*draft.planned.skipped, *built.skipped):
                self._outcomes[lane].skip(skip)
                if not built.good:
                    if (lane, draft.planned.task) not in self._patience:
                        self._patience[lane, draft.planned.task] = self._lanes[lane].watch(draft.planned.task)
                    self._patience[lane, draft.planned.task].add(skip)
            if built.batch is not None:
                self._patience.pop((lane, draft.planned.task), None)
                self._positions[lane] = draft.planned.after
                self._outcomes[lane].use(built.good)
                keys = tuple(plan.key for plan in built.good)
                tokens = sum(plan.num_tokens for plan in built.good)
                served = served_by([(plan.tasks, plan.num_tokens) for plan in built.good])
                return Pack(lane, draft.planned.number, built.batch, keys, tokens, served, built.copy)
