"""`python -m reca_fast.demo`: RECA on the toy world, on two cores in minutes, measured before and after.

A tiny OpenUni that ships with the package draws coloured shapes from words, and hears no colour in them. It is
post-trained on pictures without captions by the same commands as any other model, and asked again.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from reca_fast.errors import UserError, writing

if TYPE_CHECKING:
    from reca_fast.config import DataConfig, RunConfig
    from reca_fast.proof.measure import Measured
    from reca_fast.proof.measuring import Begun

BASE = Path(__file__).parents[1] / "proof" / "base"
RECIPE = "toy"
WRITTEN = {"cache", "run", "trained", "report.html", "report.json"}
"""What a demo leaves in its folder, and what the next one replaces."""
STOPPED = 130
"""The exit code of what Ctrl-C ended."""


def main(argv: list[str] | None = None) -> int:
    """Read the demo's own options and show it; the exit code is that of `demonstrate`, 2 for a user's mistake, 130 when
    Ctrl-C or SIGTERM ended it.
    """
    parser = argparse.ArgumentParser(prog="python -m reca_fast.demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", default="runs/demo", help="folder for it; an earlier demo in it is replaced (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training and of what is drawn (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: the recipe's)")
    parser.add_argument("--prompts", type=int, default=200, help="prompts for each subtask (default: %(default)s)")
    parser.add_argument("--base", default=str(BASE), help="checkpoint folder to begin with (default: the shipped one)")
    options = parser.parse_args(argv)
    if not 1 <= options.prompts <= 200 or options.seed < 0 or (options.steps is not None and options.steps < 1):
        parser.error("--prompts goes from 1 to 200, --steps from 1, --seed from 0")
    try:
        with ended_by_sigterm():
            return demonstrate(Path(options.out), Path(options.base), options.seed, options.steps, options.prompts)
    except UserError as error:
        print(f"reca-fast demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reca-fast demo: stopped; the next one begins anew.", file=sys.stderr)
        return STOPPED


def demonstrate(folder: Path, base: Path, seed: int, steps: int | None, prompts: int) -> int:
    """Measure the base while it is post-trained, measure what came of it, and write the report.

    Args:
        folder: an earlier demo in it is replaced.
        base: a checkpoint folder.
        seed: of training and of what is drawn.
        steps: of training; None takes the recipe's.
        prompts: for each subtask.

    Returns:
        0 when RECA's effect shows, 1 when it does not, or the exit code of a verb that failed.

    Raises:
        UserError: there is no base, or it lies in the folder, or the folder holds something else or cannot be written.
        KeyboardInterrupt: somebody asked it to stop.
    """
    import torch

    from reca_fast.cli import main as reca_fast
    from reca_fast.cli.options import parse
    from reca_fast.config import RunConfig
    from reca_fast.proof.effect import says_effect
    from reca_fast.proof.environment import environment
    from reca_fast.proof.measure import ASKED
    from reca_fast.proof.measuring import Measuring
    from reca_fast.proof.report import Report, says_scores, write_report

    clock = Clock()
    if not base.is_dir():
        raise UserError(f"The base {base} does not exist; set --base to a checkpoint folder.")
    if base.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"The base {base} lies in {folder}, where an earlier demo is replaced; name another --out.")
    run = folder / "run"
    given = ["--config", RECIPE, "--model.path", str(base), "--data.seed", str(seed), "--device", "cpu"]
    encoding = ["cache", *given, "--out", str(folder / "cache")]
    training = ["train", *given, "--data.cache", str(folder / "cache"), "--seed", str(seed), "--out", str(run)]
    training += ["--steps", str(steps)] if steps else []
    config = parse(RunConfig, "train", training[1:])
    make_room(folder)
    weights = "average" if config.optim.ema_decay > 0 else "live"
    exporting = ["export", str(run), str(folder / "trained"), "--weights", weights]
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread and lose much to a busy core
    processes = min(2, os.cpu_count() or 1)
    asked: dict[str, Any] = {"count": prompts, "seed": seed}
    with Measuring(processes) as measuring:
        # A second core is free while the first one trains.
        begun = measuring.begin(base, config.data, config.sampling, **asked)
        print(
            f"RECA on the toy world, seed {seed}: about four minutes on two cores. What the base draws from {prompts} "
            "prompts of each subtask is judged beside all that follows.",
            flush=True,
        )
        for command in (encoding, training, exporting):
            print(f"\nNow `reca-fast {' '.join(command)}`:", flush=True)
            if code := reca_fast(command):
                if code == STOPPED:
                    raise KeyboardInterrupt
                return code
            clock.lap(command[0])
            if command is training:
                rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                if rows[-1]["step"] < config.steps:  # it saves and ends in peace
                    raise KeyboardInterrupt
        print("\nNow the same prompts for what came of it:", flush=True)
        before = waited_for(begun, "the base is judged")
        clock.lap("the base's measurement, beside these")
        again = measuring.begin(folder / "trained", config.data, config.sampling, **asked, parts=len(ASKED))
        after = waited_for(again, "what came of it is judged")
        clock.lap("measurement after")
    begins = "" if base == BASE else f" --base {base.name}"  # no path of this machine in a page to be shared
    report = Report(
        before=before,
        after=after,
        losses=[(row["step"], row["loss"]) for row in rows if row["loss"] is not None],
        model="a tiny OpenUni",
        recipe=Path(RECIPE).stem,
        settings=settings_of(config),
        facts=facts_of(config, base, rows),
        environment=environment(),
        seeds={"seed": config.seed, "data.seed": config.data.seed, "drawing": seed},
        seconds=clock.laps | {"all": clock.all},
        commands=[f"python -m reca_fast.demo{begins} --seed {seed} --steps {config.steps} --prompts {prompts}"],
    )
    with writing(folder):
        html = write_report(report, folder)
    shown, sentence = says_effect(before.scores, after.scores)
    print(f"\n{says_scores(before.scores, after.scores)}\n\n{sentence}")
    print(
        f"{clock.all:.0f} s in all. Open {html} in a browser: pictures before and after, curves, the recipe.\n"
        "Next, with the real checkpoint and your pictures:\n"
        "  reca-fast train --config bagel --model.path BAGEL-7B-MoT --data.source FOLDER_OF_PICTURES --out runs/bagel"
    )
    return 0 if shown else 1


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """A context in which SIGTERM does what Ctrl-C does, and so leaves no process behind."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def make_room(folder: Path) -> None:
    """Remove an earlier demo from a folder, which is made where it is missing.

    Raises:
        UserError: the folder holds something that no demo leaves there, or cannot be written. Nothing is removed then.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in folder.iterdir()}
        if strange := sorted(there - WRITTEN):
            raise UserError(
                f"{folder} holds {strange[0]}, which is not of this demo: move it away, or choose another folder with "
                "`python -m reca_fast.demo --out FOLDER`."
            )
        if there:
            print(f"The earlier demo in {folder} gives way to this one.")
        for name in there:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def waited_for(begun: "Begun", what: str) -> "Measured":
    """What was measured, with a bar on a terminal until it is."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=None)
        return begun.end(lambda done, pieces: bar.update(task, completed=done, total=pieces))


class Clock:
    """How long each stage took, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._began = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The stage `name` ends now, and the next one begins."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now

    @property
    def all(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._began


def settings_of(config: "RunConfig") -> dict[str, Any]:
    """Every setting of a run, as plain values."""
    from reca_fast.train.saved import as_json

    settings = as_json(config)
    settings["model"]["path"] = Path(config.model.path).name
    settings["data"]["cache"] = Path(config.data.cache).name
    settings["out"] = Path(config.out).name
    return settings


def facts_of(config: "RunConfig", base: Path, rows: list[Mapping[str, Any]]) -> dict[str, str]:
    """What a reader should know about the recipe, in words."""
    from dataclasses import replace

    from reca_fast.models import open_model
    from reca_fast.proof.environment import hash_of
    from reca_fast.train.freeze import freeze

    module = open_model(replace(config.model, path=str(base))).module
    freeze(module, config.model.freeze)
    sizes = {flag: sum(p.numel() for p in module.parameters() if p.requires_grad is flag) for flag in (True, False)}
    samples = sum(row["images"] for row in rows) / len(rows)
    weights = vars(config.data.tasks)
    replay = weights["t2i"] / sum(weights.values())
    return {
        "trained": f"{sizes[True] / 1e6:.2f} million parameters, which draw",
        "frozen": f"{sizes[False] / 1e6:.2f} million parameters of the language model and of the way from it to what "
        "draws; besides these, the vision tower and the codec of pictures",
        "base": f"{hash_of(base)[:16]} (xxh3), made by python -m reca_fast.proof.pretraining: an understanding "
        "taught on complete descriptions, and drawing from captions that seldom name a colour or a place",
        "post-training": f"{config.steps} steps of {samples:.0f} pictures of {config.data.source}, without captions",
        "replay of captions": f"{replay:.0%} of the samples" if replay else "none",
        "instructions": asked_with(config.data),
        "optimizer": f"{config.optim.kind}, learning rate {config.optim.lr:g}, {config.optim.schedule}",
        "drawing": f"{config.sampling.steps} steps, guidance {config.sampling.guidance:g}"
        if config.sampling.steps and config.sampling.guidance
        else "as the model's authors do",
    }


def asked_with(data: "DataConfig") -> str:
    """With which instructions the model is asked to draw pictures again, and how often each of them is."""
    if not data.own_templates:
        return f"{data.templates} of the paper's" if data.templates else "all of the paper's"
    often = Counter(data.own_templates)
    return ", ".join(f"“{text}” ({number} of {often.total()})" for text, number in often.most_common())


if __name__ == "__main__":
    sys.exit(main())
