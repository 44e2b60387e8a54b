"""Plans, fills and builds packs ahead of the training step, in an order that only the settings decide.

The data of a step is cut into `packs_per_step` lanes, whatever the number of processes: lane l of L takes every L-th
record of each epoch's order, starting with the l-th. A process serves some of the lanes. So packs, and a resumed run,
do not depend on processes, threads or prefetching.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.data.images import BadRecord
from reca_fast.data.packing import Packer
from reca_fast.data.prompts import stable_uniform
from reca_fast.data.samples import NO_CAPTION, SampleBuilder, SamplePlan
from reca_fast.data.sources.base import Source
from reca_fast.errors import UserError
from reca_fast.flow import Sample
from reca_fast.schema import check_ranges

T = TypeVar("T")
EXAMPLES = 3  # keys remembered per reason for skipping


@dataclass(frozen=True)
class Pack(Generic[T]):
    """One packed batch of a lane."""

    lane: int
    number: int  # counts the lane's packs from 0, over resumes too
    payload: T  # what collate made of the samples
    keys: tuple[str, ...]  # of the samples, in the payload's order
    num_tokens: int  # as planned, samples that failed to decode left out
    state: dict[str, Any]  # JSON-able: load it to go on with the pack after this one


@dataclass
class Skips:
    """How many records were left out, by reason, with a few keys as examples."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, key: str) -> None:
        self.merge(Skips({reason: 1}, {reason: [printable(key)]}))

    def merge(self, other: "Skips") -> None:
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            keys = self.examples.setdefault(reason, [])
            keys += [key for key in other.examples[reason] if key not in keys]
            del keys[EXAMPLES:]

    def __str__(self) -> str:
        return "; ".join(
            f"{count} x {reason} (e.g. {', '.join(self.examples[reason])})"
            for reason, count in sorted(self.counts.items())
        )


def describe(reports: Sequence[Mapping[str, Any]]) -> str:
    """One line that sums up the `PackLoader.report` of every process."""
    skips = Skips()
    for report in reports:
        skips.merge(Skips(report["skipped"], report["examples"]))
    reasons = f": {skips}" if skips.counts else ""
    line = f"{sum(r['samples'] for r in reports)} samples used, {sum(skips.counts.values())} records skipped{reasons}"
    if fallbacks := sum(report["without_caption"] for report in reports):
        line += f"; {fallbacks} samples without a caption served reca"
    if damaged := sorted({name for report in reports for name in report["damaged"]}):  # all processes read the same
        shards = (
            "damaged shard, read as far as it goes" if len(damaged) == 1 else "damaged shards, read as far as they go"
        )
        line += f"; {len(damaged)} {shards}: {', '.join(damaged[:EXAMPLES])}{', ...' if damaged[EXAMPLES:] else ''}"
    return line


def printable(name: str) -> str:
    """The name of a file, its bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=2)  # neighbouring epochs: lanes do not change epochs at the same moment
def epoch_order(records: int, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Record numbers int64 [records] in the order of one epoch."""
    if not shuffle:
        return torch.arange(records)
    generator = torch.Generator().manual_seed(int(stable_uniform("order", seed, epoch) * 2**53))
    return torch.randperm(records, generator=generator)


class _Skip(NamedTuple):
    """One record left out."""

    epoch: int
    key: str
    reason: str
    tokens: int = 0  # of a sample that is too long


class _Built(NamedTuple):
    """A pack whose pictures are decoded; the payload is None when none was usable."""

    payload: Any
    good: list[SamplePlan]
    skipped: list[_Skip]


class _Draft(NamedTuple):
    """A pack that is planned and being built, what planning skipped on the way, and the lane's state right after."""

    skipped: list[_Skip]
    state: dict[str, Any]
    built: "Future[_Built]"


class _Lane:
    """One lane's endless stream of plans and its packer; used by one thread at a time."""

    def __init__(self, number: int, source: Source, builder: SampleBuilder, config: DataConfig) -> None:
        self._number, self._source, self._builder, self._config = number, source, builder, config
        self._epoch = self._position = 0  # the record to be planned next
        self._skipped: list[_Skip] = []  # since the last pack
        self._packer: Packer[SamplePlan] = Packer(config.tokens_per_pack, config.lookahead)
        self._stream = self._plans()
        self.length = len(self._items(0))  # records of this lane in an epoch

    def load(self, state: dict[str, Any]) -> None:
        """Go on after the pack whose state this is; the buffer's plans are made anew from their records."""
        self._epoch, self._position = state["epoch"], state["position"]
        plans = (self._plan(index, epoch) for index, epoch in state["waiting"])
        self._packer.waiting = [plan for plan in plans if plan]

    def next_pack(self) -> tuple[list[SamplePlan], list[_Skip], dict[str, Any]]:
        """Plans of the next pack, what was skipped before it was full, and the state to go on from.

        Raises UserError when a whole epoch has no usable record.
        """
        plans = self._packer.next_pack(self._stream)
        skipped, self._skipped = self._skipped, []
        waiting = [[plan.index, plan.epoch] for plan in self._packer.waiting]
        return plans, skipped, {"epoch": self._epoch, "position": self._position, "waiting": waiting}

    def _plans(self) -> Iterator[SamplePlan]:
        while True:
            items = self._items(self._epoch)
            whole, usable, before = self._position == 0, False, len(self._skipped)
            while self._position < len(items):
                index = int(items[self._position])
                self._position += 1
                if plan := self._plan(index, self._epoch):
                    usable = True
                    yield plan
            if whole and not usable:
                raise UserError(_nothing_usable(self._skipped[before:], self._config))
            self._epoch, self._position = self._epoch + 1, 0

    def _plan(self, index: int, epoch: int) -> SamplePlan | None:
        """The plan for a record, or None with the reason noted."""
        try:
            record = self._source.read(index)  # its bytes are dropped again: a buffer of plans stays small
            width, height = self._builder.picture_size(record.image)
            plan = self._builder.plan(index, record.key, width, height, record.caption, epoch)
            for option in _limits_below(plan.num_tokens, self._config):
                self._skipped.append(_Skip(epoch, record.key, f"longer than {option}", plan.num_tokens))
                return None
            return plan
        except BadRecord as bad:
            self._skipped.append(_Skip(epoch, self._source.key(index), bad.reason))
            return None

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
        self._packs = dict.fromkeys(self._lanes, 0)  # handed out
        self._samples = dict.fromkeys(self._lanes, 0)  # in those packs
        self._without_caption = dict.fromkeys(self._lanes, 0)  # of these, drawn for another task than reca
        self._skips = {lane: Skips() for lane in self._lanes}
        # Skips by epoch, of epochs without a good sample so far: a full one means that nothing can be used.
        self._failures: dict[int, dict[int, list[_Skip]]] = {lane: {} for lane in self._lanes}
        self._states: dict[int, dict[str, Any]] = {}
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

    @property
    def skipped(self) -> dict[str, int]:
        """How many records each reason made this process skip, up to the packs handed out and over resumes."""
        return dict(self._all_skips().counts)

    def summary(self) -> str:
        """One line: how many samples were used and how many records skipped, why, with examples."""
        return describe([self.report()])

    def report(self) -> dict[str, Any]:
        """What `describe` says, JSON-able, so that the reports of several processes can be brought together."""
        skips = self._all_skips()
        return {
            "samples": sum(self._samples.values()),
            "without_caption": sum(self._without_caption.values()),
            "skipped": skips.counts,
            "examples": skips.examples,
            "damaged": [printable(name) for name in getattr(self._source, "damaged", ())],
        }

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """{lane: its state after the last pack handed out}, JSON-able. A saved run joins the dicts of all processes."""
        return {str(lane): state for lane, state in self._states.items()}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Go on where the saved lanes stopped; states of lanes that this process does not serve are left alone.

        Call it before the first `next()`. Raises UserError when packs_per_step or the data's size has changed.
        """
        if any(self._drafts.values()):
            raise RuntimeError("load_state_dict comes before the first pack")
        for state in states.values():
            if state["packs_per_step"] != self._config.packs_per_step:
                raise UserError(
                    f"The saved run had data.packs_per_step {state['packs_per_step']}, now it is "
                    f"{self._config.packs_per_step}; set it back to resume."
                )
            if state["records"] != len(self._source):
                raise UserError(
                    f"The saved run had {state['records']} records, data.source now has "
                    f"{len(self._source)}; resume with the same data."
                )
        if not states:  # saved before the first pack
            return
        if missing := [lane for lane in self._lanes if str(lane) not in states]:
            raise UserError(f"The saved run has no data state for lanes {missing}; it was saved incompletely.")
        for lane in self._lanes:
            state = states[str(lane)]
            self._lanes[lane].load(state)
            self._packs[lane], self._samples[lane] = state["packs"], state["samples"]
            self._without_caption[lane] = state.get("without_caption", 0)
            self._skips[lane].merge(Skips(state["skipped"], state["skipped_examples"]))
            self._states[lane] = state

    def close(self) -> None:
        """End the threads; work not yet begun is dropped."""
        self._planner.shutdown(wait=True, cancel_futures=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _order_draft(self, lane: int) -> None:
        self._drafts[lane].append(self._planner.submit(self._start, self._lanes[lane]))

    def _start(self, lane: _Lane) -> _Draft:
        """In the planning thread: plan a pack and hand its pictures to the workers."""
        plans, skipped, state = lane.next_pack()
        outcomes = [self._workers.submit(self._build, plan) for plan in plans]
        # Workers take tasks in order, so this one begins when all its samples have begun: waiting cannot lock up.
        return _Draft(skipped, state, self._workers.submit(self._join, plans, outcomes))

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
                skipped.append(_Skip(plan.epoch, plan.key, outcome.reason))
            else:
                samples.append(outcome)
                good.append(plan)
        return _Built(self._collate(samples) if samples else None, good, skipped)

    def _next_pack(self, lane: int) -> Pack[T]:
        """The lane's next pack that kept a sample. Counting happens here, in the order in which packs go out."""
        failures = self._failures[lane]
        while True:
            if not self._drafts[lane]:
                self._order_draft(lane)
            draft = self._drafts[lane].popleft().result()
            built = draft.built.result()
            for skip in (*draft.skipped, *built.skipped):
                self._skips[lane].add(skip.reason, skip.key)
                failures.setdefault(skip.epoch, []).append(skip)
            for plan in built.good:
                failures.pop(plan.epoch, None)
            if built.good:
                return self._handed_out(lane, draft, built)
            if hopeless := [skips for skips in failures.values() if len(skips) >= self._lanes[lane].length]:
                raise UserError(_nothing_usable(hopeless[0], self._config))

    def _handed_out(self, lane: int, draft: _Draft, built: _Built) -> Pack[T]:
        number = self._packs[lane]
        self._packs[lane] += 1
        self._samples[lane] += len(built.good)
        self._without_caption[lane] += sum(plan.without_caption for plan in built.good)
        self._states[lane] = draft.state | {
            "packs_per_step": self._config.packs_per_step,
            "records": len(self._source),
            "packs": self._packs[lane],
            "samples": self._samples[lane],
            "without_caption": self._without_caption[lane],
            "skipped": dict(self._skips[lane].counts),
            "skipped_examples": {reason: list(keys) for reason, keys in self._skips[lane].examples.items()},
        }
        keys = tuple(plan.key for plan in built.good)
        tokens = sum(plan.num_tokens for plan in built.good)
        return Pack(lane, number, built.payload, keys, tokens, self._states[lane])

    def _all_skips(self) -> Skips:
        together = Skips()
        for skips in self._skips.values():
            together.merge(skips)
        return together


def _limits_below(tokens: int, config: DataConfig) -> list[str]:
    """The options that refuse a sample of so many tokens."""
    limits = ("max_tokens_per_sample", "tokens_per_pack")
    return [f"data.{option}" for option in limits if getattr(config, option) < tokens]


def _nothing_usable(skipped: list[_Skip], config: DataConfig) -> str:
    reasons, ways = Skips(), []
    for skip in skipped:
        reasons.add(skip.reason, skip.key)
    if lengths := [skip.tokens for skip in skipped if skip.tokens]:
        needed = min(lengths)
        options = " and ".join(_limits_below(needed, config))
        ways.append(f"Raise {options} to at least {needed}, which the shortest sample needs.")
    if NO_CAPTION in reasons.counts:
        ways.append("Add captions, or give data.tasks.reca a weight.")
    if len(lengths) + reasons.counts.get(NO_CAPTION, 0) < len(skipped):
        ways.append("Check data.source.")
    return f"None of the {len(skipped)} records of an epoch could be used: {reasons}. {' '.join(ways)}"
