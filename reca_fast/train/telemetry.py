"""What a run tells: a progress line, metrics.jsonl, TensorBoard, a loss curve, profiler traces."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reca_fast.config import RunConfig
from reca_fast.errors import UserError
from reca_fast.evaluation.reconstruction import Reconstruction
from reca_fast.hardware import peak_flops
from reca_fast.memory import compiled_graphs
from reca_fast.optim import SkippedStep
from reca_fast.sample import TASKS

from .distributed import Processes
from .metrics import cut_after, draw_curve
from .stats import StepStats
from .symptoms import Symptom, Symptoms

QUIET_SECONDS = 5.0
"""Where the output is no terminal, progress lines are at least this far apart."""

PROFILED_STEPS = 5
"""A trace begins with the third step and ends with this one."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would end the process with an exit code of its own."""
        raise BrokenPipeError


class Telemetry:
    """Tells how a run is going. Every process has one, but only that of the main process writes and prints.

    Args:
        copying_below: see `Symptoms`.
    """

    def __init__(self, config: RunConfig, processes: Processes, copying_below: float | None = None) -> None:
        self.config, self.processes = config, processes
        self.folder = Path(config.out)
        self.console = _Console(quiet=not processes.is_main, soft_wrap=True)
        self.progress: Progress | None = None
        self.peak = peak_flops(processes.device)
        self.writer: Any = None
        self._metrics: Any = None
        self._mark = (0.0, 0)  # time and step of the last log
        self._last_line = 0.0
        self.traced = False
        self._warm_graphs: int | None = None
        self._symptoms = Symptoms(copying_below)
        self._warnings: list[str] = []  # names for the next line of metrics
        self._told: set[str] = set()

    def start(self, step: int, steps: int) -> None:
        """Open the files and show the progress bar. Lines of metrics after `step` are removed: they belong to work that
        was lost.

        Args:
            step: steps taken before this process began.
            steps: of the whole run.
        """
        self.first_step = step
        if self.processes.is_main:
            from torch.utils.tensorboard import SummaryWriter

            self._path = self.folder / "metrics.jsonl"
            if os.path.lexists(self._path) and not self._path.is_file():
                raise UserError(f"{self._path} is no file; remove it, or set --out to another folder.")
            if damaged := cut_after(self._path, step):
                lines = f"line{'s' * (len(damaged) > 1)} {', '.join(map(str, damaged))}"
                self.console.print(f"{self._path}: {lines} damaged and left out.")
            self._metrics = self._path.open("a")
            self.writer = SummaryWriter(self.folder / "tensorboard", purge_step=step + 1)
            if step:
                self.console.print(f"Resumed after step {step}.")
            if sys.stdout.isatty():
                self.progress = Progress(
                    TextColumn("step"),
                    MofNCompleteColumn(),
                    BarColumn(),
                    TimeRemainingColumn(),
                    TextColumn("{task.fields[line]}"),
                    console=self.console,
                )
                self.task = self.progress.add_task("", total=steps, completed=step, line="")
                self.progress.start()
        self._mark = (time.perf_counter(), step)

    def log(self, step: int, stats: StepStats, skipped: Sequence[SkippedStep]) -> None:
        """Write one line of metrics. Loss and gradient norm of a step that was skipped are null: JSON has no NaN.

        Args:
            step: steps taken; `stats` are those of the last one.
            skipped: what was skipped since the last line.
        """
        if skipped and skipped[-1].step == step:
            losses, grad_norm, loss = dict.fromkeys(stats.terms), None, None
        else:
            totals = dict(zip(stats.terms, stats.sums.tolist(), strict=True))
            losses = {term: total / stats.counts[term] for term, total in totals.items()}
            loss = sum(getattr(self.config.loss, term) * value for term, value in losses.items())
            grad_norm = stats.grad_norm.item()
        metrics: dict[str, Any] = {
            "step": step,
            "loss": loss,
            **{f"loss_{term}": value for term, value in losses.items()},
            "grad_norm": grad_norm,
            "lr": stats.lr,
            "images": stats.images,
            "tokens": stats.tokens,
            **self._of_tasks(stats),
            "skipped": [each._asdict() for each in skipped],
        }
        self._warn(step, self._symptoms.of_losses(losses))
        metrics |= {"warnings": self._warnings} if self._warnings else {}
        self._warnings = []
        metrics |= self._rates(step, stats)
        if self.processes.is_main:
            self._check_still_there()
            self._metrics.write(json.dumps(metrics) + "\n")
            self._metrics.flush()
            for name, value in (metrics | {"skipped": len(skipped)}).items():
                if name not in ("step", "warnings") and value is not None:
                    self.writer.add_scalar(name, value, step)
            for each in skipped:
                self.console.print(f"Step {each.step} skipped: inf or NaN in {' and '.join(each.not_finite)}.")
            self._show(step, metrics)

    def _of_tasks(self, stats: StepStats) -> dict[str, int]:
        """Samples, their tokens and the tokens with a loss, of each task that is trained."""
        return {
            f"{what}_{task}": number
            for task, served in stats.served.items()
            if getattr(self.config.loss, task) > 0
            for what, number in (
                ("samples", served.samples),
                ("tokens", served.tokens),
                ("loss_tokens", stats.counts.get(task, 0)),
            )
        }

    def judge(self, step: int, reconstructions: Sequence[Reconstruction]) -> None:
        """Look at a grid drawn after `step` steps; what is wrong with it goes into the next line of metrics."""
        if self.processes.is_main:
            self._warn(step, self._symptoms.of_grid(reconstructions))

    def _warn(self, step: int, symptoms: Sequence[Symptom]) -> None:
        """Say each symptom on the console when it is seen for the first time, and note its name for the metrics."""
        for name, sentence in symptoms:
            self._warnings.append(name)
            if name not in self._told:
                self._told.add(name)
                self.console.print(f"Warning {name}, step {step}: {sentence}")

    def _check_still_there(self) -> None:
        """An open file can be written although it was removed, and the folder would be made anew by the next save."""
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._metrics.fileno())):
                return
        except FileNotFoundError:
            pass
        raise UserError(
            f"{self._path} was removed, moved or replaced while the run was writing to it, so the run ends; start the "
            "same command again to go on from the last checkpoint that is still there."
        )

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Time spent inside (grids, saves) counts neither in the rates nor in the time left."""
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize()  # the step's work does count
        began = time.perf_counter()
        yield
        then, step = self._mark
        self._mark = (then + time.perf_counter() - began, step)

    def _rates(self, step: int, stats: StepStats) -> dict[str, Any]:
        """Rates since the last line, memory, and how many graphs were compiled after the fifth step."""
        now = time.perf_counter()
        before, last_step = self._mark
        steps, seconds = max(1, step - last_step), max(1e-9, now - before)
        self._mark = (now, step)
        on_gpu = self.processes.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
        rates: dict[str, Any] = {
            "seconds": seconds / steps,
            "images_per_s": stats.images * steps / seconds,
            "tokens_per_s": stats.tokens * steps / seconds,
            "memory_gb": memory / 1e9,
            "mfu": stats.flops * steps / seconds / self.peak if self.peak else None,
        }
        if self.config.memory.compile:
            graphs = compiled_graphs()
            if self._warm_graphs is None and step - self.first_step >= 5:
                self._warm_graphs = graphs
            rates["recompiles"] = 0 if self._warm_graphs is None else graphs - self._warm_graphs
        return rates

    def _show(self, step: int, metrics: dict[str, Any]) -> None:
        mfu = f"{metrics['mfu']:.1%}" if metrics["mfu"] is not None else "n/a"
        loss = f"{metrics['loss']:.4f}" if metrics["loss"] is not None else "n/a"
        terms = {task: metrics.get(f"loss_{task}") for task in TASKS if getattr(self.config.loss, task) > 0}
        if len(terms) > 1:  # a task that no pack of the step served has none
            of_terms = (f"{task} {value:.4f}" for task, value in terms.items() if value is not None)
            loss += f" ({', '.join(of_terms) or 'n/a'})"
        line = (
            f"loss {loss}  {metrics['images_per_s']:.2f} images/s  "
            f"{metrics['tokens_per_s']:.0f} tokens/s  {metrics['memory_gb']:.2f} GB  MFU {mfu}"
        )
        if self.progress is not None:
            self.progress.update(self.task, completed=step, line=line)
        elif time.perf_counter() - self._last_line > QUIET_SECONDS or step == self.config.steps:
            self._last_line = time.perf_counter()
            left = (self.config.steps - step) * metrics["seconds"]
            self.console.print(f"step {step}/{self.config.steps}  {line}  ETA {left / 60:.1f} min")

    @contextmanager
    def profiler(self) -> Iterator[Any]:
        """A torch profiler over steps 3 to 5 of this process's life when `--profile` asks for it, else None."""
        if not self.config.profile:
            yield None
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints when it starts and stops
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.processes.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        write = torch.profiler.tensorboard_trace_handler(str(self.folder / "profile"))

        def ready(profiler: torch.profiler.profile) -> None:
            if profiler.step_num >= PROFILED_STEPS:  # also called when the run ends earlier
                write(profiler)
                self.traced = True

        schedule = torch.profiler.schedule(wait=1, warmup=1, active=PROFILED_STEPS - 2, repeat=1)
        with torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=ready) as profiler:
            yield profiler

    def conclude(self, step: int, skipped: int, data_summary: str) -> None:
        """Close the files, draw the curve, say where things are.

        Args:
            step: steps taken.
            skipped: how many of those that this process took were skipped.
            data_summary: what became of the data, a sentence without its full stop.
        """
        self.close()
        if not self.processes.is_main:
            return
        draw_curve(self.folder / "metrics.jsonl", self.folder / "loss.png")
        files = "loss.png and metrics.jsonl"
        if self.traced:
            files = "loss.png, metrics.jsonl and the profiler's trace in profile/"
        elif self.config.profile:
            data_summary += f". No trace, that takes {PROFILED_STEPS} steps"
        if self.first_step >= self.config.steps:
            done = f"Already at step {step} of {self.config.steps}, nothing to do; raise --steps"
        elif step >= self.config.steps:
            done = f"Step {step}: finished"
        else:
            done = f"Step {step}: stopped, the same command goes on from here"
        if skipped:
            done += f" ({skipped} skipped because of inf or NaN)"
        self.console.print(f"{done}. {data_summary}. See {self.folder}/{files}.")

    def close(self) -> None:
        """Release terminal and files, also after an error."""
        if self.progress is not None:
            self.progress.stop()
        if self.writer is not None:
            self.writer.close()
        if self._metrics is not None:
            self._metrics.close()
