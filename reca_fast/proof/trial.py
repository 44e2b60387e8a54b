"""One trial of a study: a recipe trained with a seed, exported and measured, each by a command of its own.

What is finished is not done again: the scores are written last, in one go, and the training goes on from its own
checkpoints. So a study may be stopped or killed at any time, and the same command goes on.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, geometric_mean
from threading import Event
from typing import Any

import xxhash

from reca_fast.checkpoints import CheckpointStore
from reca_fast.config import ModelConfig, RunConfig
from reca_fast.errors import UserError
from reca_fast.models import open_model
from reca_fast.schema import read_json
from reca_fast.train.folder import RunFolder
from reca_fast.train.parent import STOPS_WITH_PARENT
from reca_fast.verify.unchanged import compare_frozen

from .caches import SharedCache
from .drawings import smoothed
from .environment import environment

SCORES = "scores.json"
ASKED = "trial.json"
LOG = "log.txt"
COMMAND = ("-m", "reca_fast")
"""What `python` runs for the command line."""
LOCK_SECONDS = 60.0
"""How long a trial waits for the training of a killed study to notice that it was, and to save."""
Stages = Sequence[tuple[str, RunConfig]]
"""What `parse_stages` makes of a command line of `train`: name and settings of each stage, one without a name where
there is only one.
"""


class Failed(UserError):
    """A command of a trial ended with an error; the message says where its output is."""


class Stopped(Exception):
    """A trial was asked to stop. What it has done is saved."""


@dataclass(frozen=True)
class Trial:
    """A recipe with a seed. With no training, its base is measured."""

    name: str
    seed: int
    folder: Path
    args: tuple[str, ...]  # of `reca-fast train`, without --out
    stages: Stages  # what these come to
    base: Path  # the checkpoint folder it starts from
    content: str  # its checksum
    count: int  # prompts for each subtask
    trains: bool = True
    processes: int = 1
    program: tuple[str, ...] = COMMAND
    """What `python` runs in place of the command line; a test may wrap it."""
    cache: SharedCache | None = None
    """What it is trained from; None: from the pictures. The result is the same."""
    says: bool = False
    """Whether its model says captions; the loss of these is measured then."""

    @property
    def run(self) -> Path:
        """The folder of the run whose weights are measured: that of the last stage."""
        return self.folder / "run" / self.stages[-1][0]

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return sum(config.steps for _, config in self.stages) if self.trains else 0

    def steps_done(self) -> int:
        """How many steps its metrics tell of."""
        return sum(len(_rows(self.folder / "run" / name / "metrics.jsonl")) for name, _ in self.stages)

    def asked(self) -> dict[str, Any]:
        """What makes a result the result of this trial: another one is none of it."""
        settings = [_portable(asdict(config)) for _, config in self.stages] if self.trains else []
        drawn = {"sampling": asdict(self.stages[-1][1].sampling), "count": self.count, "seed": self.seed}
        return {
            "base": self.content,
            "settings": settings,
            "processes": self.processes,
            "program": self.program,
            "cached": self.cache is not None,
            "drawn": drawn,
            **({"says": True} if self.says else {}),
        }

    def digest(self) -> str:
        """A checksum of what it was asked for, by which a result is told from one of other settings."""
        return xxhash.xxh3_64(json.dumps(self.asked(), sort_keys=True).encode()).hexdigest()


def finished(trial: Trial) -> dict[str, Any] | None:
    """The result of a trial, when there is one.

    Raises:
        UserError: its folder holds a trial of other settings.
    """
    asked = trial.folder / ASKED
    if asked.is_file() and read_json(asked) != json.loads(json.dumps(trial.asked())):
        raise UserError(
            f"{trial.folder} holds a trial of other settings than those of now; name another --runs, or remove it."
        )
    result = trial.folder / SCORES
    return dict(read_json(result)) if result.is_file() else None


def run_trial(trial: Trial, stop: Event) -> dict[str, Any]:
    """Train, export and measure, as far as that is not done; the result, as `finished` gives it later.

    Args:
        stop: set by whoever wants the trial to stop: the training saves and ends.

    Raises:
        Failed: a command failed.
        Stopped: after `stop` was set.
    """
    if (result := finished(trial)) is not None:
        return result
    trial.folder.mkdir(parents=True, exist_ok=True)
    write_json(trial.folder / ASKED, trial.asked())
    began = time.perf_counter()
    checkpoint, last = trial.base, trial.stages[-1][1]
    if trial.trains:
        _train(trial, stop)
        checkpoint = trial.folder / "exported"
        shutil.rmtree(checkpoint, ignore_errors=True)
        weights = "average" if last.optim.ema_decay > 0 else "live"
        _command(trial, ["-m", "reca_fast", "export", str(trial.run), str(checkpoint), "--weights", weights], stop)
    settings = {name: asdict(getattr(last, name)) for name in ("model", "data", "sampling")}
    write_json(trial.folder / "settings.json", {**settings, "says": trial.says})
    measured = trial.folder / "measured.json"
    to_measure = [str(checkpoint), str(trial.folder / "settings.json"), str(measured)]
    _command(trial, ["-m", "reca_fast.proof", *to_measure, str(trial.count), str(trial.seed)], stop)
    result = {"seed": trial.seed, "asked": trial.digest(), "environment": environment()}
    result |= {"seconds": round(time.perf_counter() - began, 1)}
    result |= of_training(trial) | read_json(measured)
    if trial.trains:
        result["frozen"] = of_frozen(trial.base, checkpoint, last.model)
    write_json(trial.folder / SCORES, result)
    shutil.rmtree(trial.folder / "exported", ignore_errors=True)
    return result


def of_training(trial: Trial) -> dict[str, Any]:
    """What the metrics of a trained trial come to, all its stages in a row: steps, samples of a step, the mean loss of
    the last quarter of the steps and the geometric mean of their gradients' norms before clipping (None where no step
    had one), and some fifty points of the smoothed loss.
    """
    folders = [trial.folder / "run" / name for name, _ in trial.stages] if trial.trains else []
    rows = [row for folder in folders for row in _rows(folder / "metrics.jsonl")]
    if not rows:
        return {"steps": 0}
    raw = [row["loss"] for row in rows if row["loss"] is not None]
    losses, every = smoothed(raw), max(1, len(raw) // 50)
    norms = [row["grad_norm"] for row in rows[-max(1, len(rows) // 4) :] if row["grad_norm"]]
    return {
        "steps": trial.steps,
        "samples_per_step": round(sum(row["images"] for row in rows) / len(rows), 2),
        "loss": fmean(raw[-max(1, len(raw) // 4) :]) if raw else None,
        "gradient": geometric_mean(norms) if norms else None,
        "curve": [round(loss, 6) for loss in losses[every - 1 :: every]],
    }


def of_frozen(base: Path, checkpoint: Path, options: ModelConfig) -> dict[str, Any]:
    """How many tensors training was to leave alone, the understanding among them, and the parts that differ all the
    same, in words.
    """
    models = [open_model(replace(options, path=str(folder))) for folder in (base, checkpoint)]
    verdicts = list(compare_frozen(*models))
    return {
        "tensors": sum(verdict.tensors for verdict in verdicts),
        "differing": [str(verdict) for verdict in verdicts if verdict.differing],
    }


def _train(trial: Trial, stop: Event) -> None:
    """Train until the last stage has its steps."""
    _wait_for_lock(trial)
    train = [*trial.program, "train", *trial.args, "--out", str(trial.folder / "run")]
    if trial.cache is not None:
        with trial.cache.lock:
            if not trial.cache.is_whole():
                _command(trial, trial.cache.args, stop)
        train += ["--data.cache", str(trial.cache.folder)]
    if trial.processes > 1:
        # No port is taken that another trial may want: --standalone finds a free one.
        train = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={trial.processes}", *train]
    _command(trial, train, stop)
    newest = CheckpointStore(trial.run / "checkpoints").newest(verify=False)
    if newest is None or int(newest.name.removeprefix("step-")) < trial.stages[-1][1].steps:
        if stop.is_set():
            raise Stopped
        raise Failed(f"The training of {trial.folder} ended before its last step; {trial.folder / LOG} says why.")


def _wait_for_lock(trial: Trial) -> None:
    end = time.monotonic() + LOCK_SECONDS
    for name, _ in trial.stages:
        path = trial.folder / "run" / name
        while path.is_dir() and _is_in_use(path) and time.monotonic() < end:
            time.sleep(0.5)


def _is_in_use(run: Path) -> bool:
    with RunFolder(run) as folder:
        return bool(folder.take())


def _command(trial: Trial, args: Sequence[str], stop: Event) -> None:
    """Run `python ARGS` with its output in the trial's log. When `stop` is set, the command gets SIGTERM."""
    environment: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": "1", STOPS_WITH_PARENT: str(os.getpid())}
    with (trial.folder / LOG).open("a") as log:
        log.write(f"$ python {' '.join(args)}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, *args], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            while process.poll() is None:
                if stop.wait(0.2):
                    process.terminate()
                    process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    if stop.is_set():
        raise Stopped
    if process.returncode:
        last = (trial.folder / LOG).read_text().strip().rpartition("\n")[2]
        raise Failed(f"{trial.name}, seed {trial.seed}: {last} ({trial.folder / LOG} has it all).")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as a file of JSON in one go: a kill leaves the file as it was."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(partial, path)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of metrics; a run may be writing to it."""
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [row for line in lines if isinstance(row := _parsed(line), dict)]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what does not change a result: where things lie, and how often something is saved or told."""
    left_out = {"out", "save_every", "keep", "log_every", "sample_every", "resume", "verify_checkpoint", "device"}
    kept = {name: value for name, value in settings.items() if name not in left_out}
    kept["model"] = {name: value for name, value in kept["model"].items() if name != "path"}
    kept["data"] = {name: value for name, value in kept["data"].items() if name not in ("workers", "prefetch")}
    return kept
