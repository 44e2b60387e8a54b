"""Streams: the parts of the data that a lane goes through, each for some of the tasks and at a pace of its own.

With `data.mix=sample` there is one stream, whose samples draw their tasks, and a second one where i2t learns from
`data.instructions`. With `data.mix=pack` every task has a stream, and the packs of all lanes serve the tasks in turn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.errors import UserError
from reca_fast.randomness import generator
from reca_fast.sample import I2T, TASKS

LONGEST_TURN = 1000
"""After so many packs at most, the tasks begin anew. A ratio that needs more is met as closely as these allow."""
ANY = ""
"""In place of a task: packs that hold samples of every task."""


@dataclass(frozen=True)
class Stream:
    """Some records, in an order of their own in every epoch."""

    name: str
    setting: str  # that leads to the records, for messages
    records: range  # their numbers in the source
    weights: Mapping[str, float]  # how often a record is drawn for each task
    lanes: tuple[int, ...]  # that share the records
    is_first: bool = True  # whether the order is that of a run without other streams

    def items(self, lane: int, config: DataConfig, epoch: int) -> Tensor:
        """Record numbers int64 [n] that a lane takes in an epoch, in their order."""
        names = () if self.is_first else (self.name,)
        order = epoch_order(len(self.records), config.seed, epoch, config.shuffle, *names)
        # With fewer records than lanes, some lanes share one.
        mine = order[self.lanes.index(lane) % len(self.records) :: len(self.lanes)]
        return mine + self.records.start if self.records.start else mine


@lru_cache(maxsize=8)  # two epochs of each stream, because lanes do not reach the next one at the same moment
def epoch_order(records: int, seed: int, epoch: int, shuffle: bool, *names: str) -> Tensor:
    """Numbers int64 [records] in the order of one epoch; `names` make it another order."""
    if not shuffle:
        return torch.arange(records)
    return torch.randperm(records, generator=generator("order", seed, epoch, *names))


def open_streams(config: DataConfig, records: int, conversations: int) -> list[Stream]:
    """The streams of a run.

    Args:
        records: number of records in the source.
        conversations: how many of them, the last ones, are conversations.

    Raises:
        UserError: a task has no record to draw from.
    """
    weights = {task: getattr(config.tasks, task) for task in TASKS if getattr(config.tasks, task) > 0}
    if not weights.get(I2T):
        conversations = 0
    pictures, said = range(records - conversations), range(records - conversations, records)
    everyone = tuple(range(config.packs_per_step))
    of = {task: said if conversations and (task == I2T or config.serve == "all") else pictures for task in weights}
    if empty := [task for task, each in of.items() if not each]:
        raise UserError(f"data.tasks.{empty[0]} is above 0, and the data hold no record for it; set it to 0.")
    if config.mix == "pack":
        return [
            Stream(task, _setting(of[task] is said), of[task], {task: 1.0}, lanes_of(task, config), number == 0)
            for number, task in enumerate(weights)
        ]
    streams: list[Stream] = []
    for records_of, name in ((pictures, "source"), (said, "instructions")):
        if served := {task: weight for task, weight in weights.items() if of[task] is records_of}:
            streams.append(Stream(name, f"data.{name}", records_of, served, everyone, not streams))
    return streams


def _setting(conversations: bool) -> str:
    return "data.instructions" if conversations else "data.source"


@lru_cache(maxsize=8)
def _in_turn(weights: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    """The tasks of packs one after another, spread evenly; after the last one they begin anew."""
    shares = {task: weight / sum(weight for _, weight in weights) for task, weight in weights}
    exact = (n for n in range(1, LONGEST_TURN) if all(_is_whole(share * n) for share in shares.values()))
    length = next(exact, LONGEST_TURN)
    counts = {task: max(1, round(share * length)) for task, share in shares.items()}
    places = [((2 * n + 1) / count, task) for task, count in counts.items() for n in range(count)]
    return tuple(task for _, task in sorted(places, key=lambda place: place[0]))


def _is_whole(number: float) -> bool:
    return number > 0.5 and abs(number - round(number)) < 1e-6


def tasks_in_turn(config: DataConfig) -> tuple[str, ...]:
    """The tasks that the packs of all lanes serve one after another, in the ratio of `data.tasks`, with
    `data.mix=pack`; after the last one they begin anew.
    """
    weights = [(task, getattr(config.tasks, task)) for task in TASKS]
    return _in_turn(tuple((task, weight) for task, weight in weights if weight > 0))


def task_of_pack(config: DataConfig, lane: int, number: int) -> str:
    """The task that a lane's pack serves; ANY where each of its samples draws one."""
    if config.mix == "sample":
        return ANY
    tasks = tasks_in_turn(config)
    return tasks[(number * config.packs_per_step + lane) % len(tasks)]


def lanes_of(task: str, config: DataConfig) -> tuple[int, ...]:
    """The lanes that serve a task in some of their packs, with `data.mix=pack`."""
    return _lanes_of(task, tasks_in_turn(config), config.packs_per_step)


@lru_cache(maxsize=8)
def _lanes_of(task: str, turn: Sequence[str], lanes: int) -> tuple[int, ...]:
    step = math.gcd(lanes, len(turn))  # a lane's packs stand at every so-manieth place of the turn
    served = {place % step for place, each in enumerate(turn) if each == task}
    return tuple(lane for lane in range(lanes) if lane % step in served)
