"""`python -m reca_fast.demo`: RECA on the toy world, on two cores in minutes, measured before and after.

A tiny OpenUni that ships with the package draws coloured shapes from words, and hears no colour in them. It is
post-trained on pictures without captions by the same commands as any other model, and asked again.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca_fast.errors import UserError

if TYPE_CHECKING:
    from reca_fast.config import RunConfig

BASE = Path(__file__).parents[1] / "proof" / "base"
RECIPE = "toy"


def main(argv: list[str] | None = None) -> int:
    """Read the demo's own options and show it; the exit code is that of `demonstrate`, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m reca_fast.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/demo", help="folder that is written anew (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of training and of what is drawn (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: the recipe's)")
    parser.add_argument("--prompts", type=int, default=200, help="prompts for each subtask (default: %(default)s)")
    parser.add_argument("--base", default=str(BASE), help="checkpoint folder to begin with (default: the shipped one)")
    options = parser.parse_args(argv)
    if not 1 <= options.prompts <= 200 or options.seed < 0 or (options.steps is not None and options.steps < 1):
        parser.error("--prompts goes from 1 to 200, --steps from 1, --seed from 0")
    try:
        return demonstrate(Path(options.out), Path(options.base), options.seed, options.steps, options.prompts)
    except UserError as error:
        print(f"reca-fast demo: {error}", file=sys.stderr)
        return 2


def demonstrate(folder: Path, base: Path, seed: int, steps: int | None, prompts: int) -> int:
    """Measure the base while it is post-trained, measure what came of it, and write the report.

    Args:
        folder: written anew; whatever was in it is lost.
        base: a checkpoint folder.
        seed: of training and of what is drawn.
        steps: of training; None takes the recipe's.
        prompts: for each subtask.

    Returns:
        0 when RECA's effect shows, 1 when it does not, or the exit code of a verb that failed.
    """
    import torch

    from reca_fast.cli import main as reca_fast
    from reca_fast.cli.options import parse
    from reca_fast.config import RunConfig
    from reca_fast.proof.effect import says_effect
    from reca_fast.proof.environment import environment
    from reca_fast.proof.measuring import Measuring
    from reca_fast.proof.report import Report, says_scores, write_report

    clock = Clock()
    if not base.is_dir():
        raise UserError(f"The base {base} does not exist; set --base to a checkpoint folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    given = ["--config", RECIPE, "--model.path", str(base), "--data.seed", str(seed), "--device", "cpu"]
    encoding = ["cache", *given, "--out", str(folder / "cache")]
    training = ["train", *given, "--data.cache", str(folder / "cache"), "--seed", str(seed), "--out", str(folder)]
    training += ["--steps", str(steps)] if steps else []
    config = parse(RunConfig, "train", training[1:])
    weights = "average" if config.optim.ema_decay > 0 else "live"
    exporting = ["export", str(folder), str(folder / "trained"), "--weights", weights]
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread and lose much to a busy core
    processes = min(2, os.cpu_count() or 1)
    asked: dict[str, Any] = {"count": prompts, "seed": seed}
    with Measuring(processes) as measuring:
        # A second core is free while the first one trains.
        begun = measuring.begin(base, config.data, config.sampling, **asked)
        for command in (encoding, training, exporting):
            print(f"Now `reca-fast {' '.join(command)}`:", flush=True)
            if code := reca_fast(command):
                return code
            clock.lap(command[0])
        before = begun.end()
        clock.lap("the base's measurement, beside these")
        print("Now what it draws is judged:", flush=True)
        again = measuring.begin(folder / "trained", config.data, config.sampling, **asked, parts=3 * processes)
        after = again.end()
        clock.lap("measurement after")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
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
        commands=[f"python -m reca_fast.demo --seed {seed} --steps {config.steps} --prompts {prompts}"],
    )
    html = write_report(report, folder)
    shown, sentence = says_effect(before.scores, after.scores)
    print(f"\n{says_scores(before.scores, after.scores)}\n\n{sentence}")
    print(
        f"{clock.all:.0f} s in all. Open {html} in a browser: pictures before and after, curves, the recipe.\n"
        "Next, with the real checkpoint and your pictures:\n"
        "  reca-fast train --config bagel --model.path BAGEL-7B-MoT --data.source FOLDER_OF_PICTURES --out runs/bagel"
    )
    return 0 if shown else 1


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

    module = open_model(replace(config.model, path=str(base))).module
    sizes = {flag: sum(p.numel() for p in module.parameters() if p.requires_grad is flag) for flag in (True, False)}
    samples = sum(row["images"] for row in rows) / len(rows)
    weights = vars(config.data.tasks)
    replay = weights["t2i"] / sum(weights.values())
    return {
        "trained": f"{sizes[True] / 1e6:.2f} million parameters: connector and drawing side",
        "frozen": f"{sizes[False] / 1e6:.2f} million parameters of understanding, and the codec of pictures",
        "base": f"{hash_of(base)[:16]} (xxh3), made by `python -m reca_fast.proof.pretraining`: an understanding "
        "taught on complete descriptions, and drawing from captions that hardly ever name a colour",
        "post-training": f"{config.steps} steps of {samples:.0f} pictures of {config.data.source}, without captions",
        "replay of captions": f"{replay:.0%} of the samples" if replay else "none",
        "templates": "all" if not config.data.templates else str(config.data.templates),
        "optimizer": f"{config.optim.kind}, learning rate {config.optim.lr:g}, {config.optim.schedule}",
        "drawing": f"{config.sampling.steps} steps, guidance {config.sampling.guidance:g}"
        if config.sampling.steps and config.sampling.guidance
        else "as the model's authors do",
    }


if __name__ == "__main__":
    sys.exit(main())
