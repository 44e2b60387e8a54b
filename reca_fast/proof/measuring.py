"""Checkpoint folders measured, in other processes where more than one core is free."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.memory import fill_to_draw
from reca_fast.models import open_model

from .measure import ASKED, Drawn, Measured, Progress, measure

Sent = tuple[Any, ...]
"""A `Drawn` whose pictures are arrays: torch would send each tensor through a file of shared memory."""


def measure_folder(
    checkpoint: Path,
    data: DataConfig,
    sampling: SamplingConfig,
    *,
    count: int,
    seed: int,
    subtasks: Sequence[str] = ASKED,
    options: ModelConfig | None = None,
    progress: Progress | None = None,
) -> Measured:
    """What the model of a checkpoint folder draws of the toy world, on the CPU in fp32; the other arguments are those
    of `measure`.

    Args:
        options: of the model, where they are not the defaults; path, precision and what computes it do not count.

    Raises:
        UserError: it is no checkpoint folder, or its model cannot draw in this way.
    """
    model = open_model(on_a_cpu(options or ModelConfig(), checkpoint))
    fill_to_draw(model, torch.device("cpu"))
    return measure(model, sampling, data, count=count, seed=seed, subtasks=subtasks, progress=progress)


def on_a_cpu(options: ModelConfig, checkpoint: Path) -> ModelConfig:
    """The settings by which a checkpoint folder is measured whatever trained it: plain torch in fp32."""
    return replace(options, path=str(checkpoint), precision="fp32", kernels="reference", attention="sdpa")


class Measuring:
    """Measurements that go on beside other work, each process on one thread. Used as a context, it ends them within
    moments, whatever is not drawn by then.

    Args:
        processes: how many may go on at a time; a measurement is split among them.
    """

    def __init__(self, processes: int) -> None:
        # A forked process would hang on the locks of torch's threads.
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._pool = ProcessPoolExecutor(processes, context, _begin_process, (self._stop,))

    def __enter__(self) -> "Measuring":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def begin(
        self, checkpoint: Path, data: DataConfig, sampling: SamplingConfig, *, count: int, seed: int, parts: int = 1
    ) -> "Begun":
        """Begin to measure; `end` of what is returned waits for it. See `measure_folder`.

        Args:
            parts: how many pieces it is split into, which the processes share; at most one for each subtask.
        """
        shares = [ASKED[part::parts] for part in range(parts)]
        futures = [self._pool.submit(_draw, checkpoint, data, sampling, count, seed, share) for share in shares]
        return Begun(futures, seed, sampling)


class Begun:
    """A measurement that is going on."""

    def __init__(self, futures: Sequence[Future[list[Sent]]], seed: int, sampling: SamplingConfig) -> None:
        self._futures, self._seed, self._sampling = futures, seed, sampling

    def end(self, progress: Progress | None = None) -> Measured:
        """What was measured, when it is.

        Args:
            progress: called with the number of pieces that are measured and that of all, whenever one is.

        Raises:
            UserError: like `measure_folder`; or somebody else ended a process.
        """
        sent: list[Sent] = []
        try:
            for done, future in enumerate(as_completed(self._futures), start=1):
                sent += future.result()
                if progress is not None:
                    progress(done, len(self._futures))
        except BrokenProcessPool:
            raise UserError(
                "A process that measured was ended from outside, as the system does where memory is short."
            ) from None
        drawn = [Drawn(prompt, _tensor(picture), found, _tensor(original)) for prompt, picture, found, original in sent]
        return Measured(sorted(drawn, key=lambda each: ASKED.index(each.prompt.subtask)), self._seed, self._sampling)


class Ended(Exception):
    """Nobody waits for the measurement any more."""


_STOPS: list[Event] = []
"""In a process that measures: set when it shall end."""


def _begin_process(stop: Event) -> None:
    _STOPS.append(stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one decides
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread and lose much to a busy core
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent can end nobody, and its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _go_on(done: int, total: int) -> None:
    if any(stop.is_set() for stop in _STOPS):
        raise Ended


def _draw(
    checkpoint: Path, data: DataConfig, sampling: SamplingConfig, count: int, seed: int, subtasks: Sequence[str]
) -> list[Sent]:
    measured = measure_folder(checkpoint, data, sampling, count=count, seed=seed, subtasks=subtasks, progress=_go_on)
    return [
        (each.prompt, each.picture.numpy(), each.found, None if each.original is None else each.original.numpy())
        for each in measured.drawn
    ]


def _tensor(pixels: Any) -> Any:
    return None if pixels is None else torch.from_numpy(pixels)
