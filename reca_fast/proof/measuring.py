"""Checkpoint folders measured, in other processes where more than one core is free."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.memory import fill_to_draw
from reca_fast.models import open_model

from .measure import ASKED, Drawn, Measured, measure

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
) -> Measured:
    """What the model of a checkpoint folder draws of the toy world, on the CPU in fp32.

    Args:
        options: of the model, where they are not the defaults; path and precision do not count.

    Raises:
        UserError: it is no checkpoint folder, or its model cannot draw in this way.
    """
    model = open_model(replace(options or ModelConfig(), path=str(checkpoint), precision="fp32"))
    fill_to_draw(model, torch.device("cpu"))
    return measure(model, sampling, data, count=count, seed=seed, subtasks=subtasks)


class Measuring:
    """Measurements that go on beside other work, each process on one thread. Used as a context, it ends them.

    Args:
        processes: how many may go on at a time; a measurement is split among them.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        # A forked process would hang on the locks of torch's threads.
        self._pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))

    def __enter__(self) -> "Measuring":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(
        self, checkpoint: Path, data: DataConfig, sampling: SamplingConfig, *, count: int, seed: int, parts: int = 1
    ) -> "Begun":
        """Begin to measure; `end` of what is returned waits for it. See `measure_folder`.

        Args:
            parts: how many pieces it is split into, which the processes share.
        """
        shares = [ASKED[part::parts] for part in range(parts)]
        futures = [self._pool.submit(_draw, checkpoint, data, sampling, count, seed, share) for share in shares]
        return Begun(futures, seed, sampling)


class Begun:
    """A measurement that is going on."""

    def __init__(self, futures: Sequence[Future[list[Sent]]], seed: int, sampling: SamplingConfig) -> None:
        self._futures, self._seed, self._sampling = futures, seed, sampling

    def end(self) -> Measured:
        """What was measured, when it is.

        Raises:
            UserError: like `measure_folder`.
        """
        sent = [drawn for future in self._futures for drawn in future.result()]
        drawn = [Drawn(prompt, _tensor(picture), found, _tensor(original)) for prompt, picture, found, original in sent]
        return Measured(sorted(drawn, key=lambda each: ASKED.index(each.prompt.subtask)), self._seed, self._sampling)


def _draw(
    checkpoint: Path, data: DataConfig, sampling: SamplingConfig, count: int, seed: int, subtasks: Sequence[str]
) -> list[Sent]:
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread and lose much to a busy core
    measured = measure_folder(checkpoint, data, sampling, count=count, seed=seed, subtasks=subtasks)
    return [
        (each.prompt, each.picture.numpy(), each.found, None if each.original is None else each.original.numpy())
        for each in measured.drawn
    ]


def _tensor(pixels: Any) -> Any:
    return None if pixels is None else torch.from_numpy(pixels)
