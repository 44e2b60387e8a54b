"""Many trials, a few at a time: which runs next, how far all of them are, and how they stop."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from reca_fast.errors import UserError
from reca_fast.train.signals import StopRequest

from .trial import Failed, Stopped, Trial, finished

Run = Callable[[Trial, Event], dict[str, Any]]
MEASURING = 100
"""A measurement counts as so many steps of training when time is estimated."""
QUIET_SECONDS = 60.0
"""Where the output is no terminal, lines of progress are at least this far apart."""


def run_all(trials: Sequence[Trial], jobs: int, run: Run) -> list[dict[str, Any]]:
    """The results of all trials, in their order. Those that are finished are read, the others are run, `jobs` of them
    at a time. A trial that fails keeps none of the others from running.

    Raises:
        Failed: a trial did, told when all others have ended.
        UserError: a folder holds a trial of other settings; nothing was run then.
        KeyboardInterrupt: Ctrl-C or SIGTERM asked to stop; what has been done is saved.
    """
    results = {number: result for number, trial in enumerate(trials) if (result := finished(trial)) is not None}
    waiting = [number for number in range(len(trials)) if number not in results]
    failures: list[str] = []
    stop = Event()
    clock = Clock(trials, [trials[number] for number in waiting])
    with StopRequest() as asked, ThreadPoolExecutor(jobs) as pool, clock.shown():
        running: dict[Future[dict[str, Any]], int] = {}
        while (waiting and not stop.is_set()) or running:
            while waiting and len(running) < jobs and not stop.is_set():
                number = waiting.pop(0)
                running[pool.submit(run, trials[number], stop)] = number
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                number = running.pop(future)
                try:
                    results[number] = future.result()
                    clock.end(trials[number])
                except Stopped:
                    pass
                except (UserError, OSError) as failure:
                    failures.append(str(failure))
                    clock.end(trials[number], failed=True)
            clock.show([trials[number] for number in running.values()])
            if asked.requested:
                stop.set()
    if stop.is_set() and len(results) < len(trials):
        raise KeyboardInterrupt
    if failures:
        raise Failed(f"{len(failures)} of {len(trials)} trials failed. {' '.join(failures)}")
    return [results[number] for number in range(len(trials))]


class Clock:
    """How far trials are and how long the rest will take, on the console.

    Args:
        trials: all of them.
        waiting: those that are not finished yet.
    """

    def __init__(self, trials: Sequence[Trial], waiting: Sequence[Trial]) -> None:
        self._waiting = {id(trial): trial for trial in waiting}
        self._total = sum(map(_work, trials))
        self._left_at_first = sum(self._left(trial) for trial in waiting)
        self._began = time.monotonic()
        self._said = -QUIET_SECONDS
        self._console = Console(soft_wrap=True)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}")
        self._bar = Progress(*columns, console=self._console, disable=not sys.stdout.isatty())
        self._task = self._bar.add_task("study", total=self._total, line="")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The bar is on the terminal inside."""
        with self._bar:
            yield

    def end(self, trial: Trial, failed: bool = False) -> None:
        """Say that a trial has ended."""
        del self._waiting[id(trial)]
        how = "failed" if failed else "done"
        self._console.print(f"{trial.name}, seed {trial.seed}: {how}; {len(self._waiting)} trials left.")

    def show(self, running: Sequence[Trial]) -> None:
        """Show what runs, how much is done and the time left."""
        left = sum(self._left(trial) for trial in self._waiting.values())
        line = f"{_duration(self.seconds_left(left))} left: {', '.join(f'{each.name} {each.seed}' for each in running)}"
        self._bar.update(self._task, completed=self._total - left, line=line)
        now = time.monotonic()
        if running and self._bar.disable and now - self._said >= QUIET_SECONDS:
            self._said = now
            self._console.print(f"{1 - left / self._total:.0%} done, about {line}")

    def seconds_left(self, left: float) -> float | None:
        """Seconds until nothing is left of so much work, as fast as it went until now; None before anything went."""
        done = self._left_at_first - left
        return (time.monotonic() - self._began) * left / done if done > 0 else None

    def _left(self, trial: Trial) -> float:
        return _work(trial) - min(trial.steps, trial.steps_done())


def _work(trial: Trial) -> float:
    return trial.steps + MEASURING


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
