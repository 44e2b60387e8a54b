"""Which trials share a cache of encoded pictures, and that it changes no bit of what they compute."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from reca_fast.cli import main
from reca_fast.cli.options import parse_stages
from reca_fast.config import RunConfig
from reca_fast.models.tiny import make_tiny
from reca_fast.proof.arms import ARMS
from reca_fast.proof.caches import SQUARE, SharedCache, shared_cache
from reca_fast.proof.trial import Failed, Trial, run_trial

STAGES = """
base: tiny-openuni
data: {blur_sigma: 1}
steps: 2
stages:
  - {name: first, data: {limit: 24}}
  - {name: second, data: {limit: 32, tasks: {reca: 0, t2i: 1}}, loss: {reca: 0, t2i: 1}}
"""


def given(recipe: str, *more: str) -> list[str]:
    return ["--config", recipe, "--model.path", "base", "--device", "cpu", *SQUARE, *more]


def cache_of(recipe: str, *more: str, content: str = "1") -> SharedCache | None:
    args = given(recipe, *more)
    return shared_cache(Path("runs"), args, parse_stages(RunConfig, "train", args), content)


@pytest.mark.slow  # each recipe is read by jsonargparse
def test_arms_that_see_the_same_pictures_share_a_cache() -> None:
    found: dict[SharedCache | None, list[str]] = {}
    for arm in ARMS:
        folder = cache_of(arm.recipe)
        assert folder is not None
        found.setdefault(replace(folder, args=()), []).append(arm.name)
    assert sorted(found.values(), key=len, reverse=True)[:2] == [
        ["none", "sft-mixed", "reca", "templates-1", "templates-all", "data-64", "data-512"],
        ["sft-sparse", "sft-then-reca", "reca-then-sft"],
    ]
    assert sum(len(arms) == 1 for arms in found.values()) == 5 == len(found) - 2  # other captions, sizes, blur


def test_what_changes_an_encoding_takes_another_cache_and_what_does_not_the_same() -> None:
    plain = cache_of("tiny-openuni")
    assert plain is not None and plain.args[2] == "cache" and not plain.is_whole()
    same = cache_of("tiny-openuni", "--data.seed", "3", "--seed", "3", "--steps", "9", "--data.limit", "8")
    assert same is not None and same.folder == plain.folder
    others = [
        cache_of("tiny-openuni", *option.split())
        for option in ("--data.source toy:base", "--model.precision bf16", "--model.kernels triton")
    ]
    assert len({plain.folder, *(each.folder for each in others if each)}) == 4
    assert cache_of("tiny-openuni", content="2") != plain


def test_what_no_cache_can_serve_goes_without(tmp_path) -> None:
    """Crops are drawn in every epoch; stages of two sizes, or with captions of two names, need two."""
    assert cache_of("tiny-openuni", "--data.target_resize.fit", "crop") is None
    stages = tmp_path / "stages.yaml"
    for change in ("blur_sigma: 2", "caption_name: long, tasks: {reca: 1, t2i: 1}"):
        second = "{name: second, data: {caption_name: short, tasks: {reca: 0, t2i: 1}}}"
        stages.write_text(f"base: tiny-openuni\nstages: [{{name: first, data: {{{change}}}}}, {second}]\n")
        assert cache_of(str(stages)) is None


@pytest.mark.slow
def test_a_trial_computes_the_same_from_a_shared_cache(tmp_path, monkeypatch) -> None:
    """Two stages, another seed, a limit; in this process, which has what each command would import."""
    base, recipe = make_tiny("tiny-openuni", tmp_path / "base"), tmp_path / "recipe.yaml"
    recipe.write_text(STAGES)
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []

    def command(trial: Trial, args: list[str], stop: threading.Event) -> None:
        ran.append(args[2])
        if args[2] == "export":
            raise Failed("far enough")
        assert main(list(args[2:])) == 0

    monkeypatch.setattr("reca_fast.proof.trial._command", command)
    args = [*given(str(recipe)), "--model.path", str(base)]
    stages, losses = parse_stages(RunConfig, "train", args), []
    shared = shared_cache(Path("runs"), args, stages, "1")
    for name, cached, seed in (("plain", None, 5), ("cached", shared, 5), ("again", shared, 6)):
        own = (*args, "--seed", str(seed), "--data.seed", str(seed))
        trial = Trial("arm", seed, Path("runs") / name, own, stages, base, "1", count=1, cache=cached)
        with pytest.raises(Failed, match="far enough"):
            run_trial(trial, threading.Event())
        rows = [(trial.folder / "run" / stage / "metrics.jsonl").read_text().split("\n")[:-1] for stage, _ in stages]
        losses.append([json.loads(row)["loss"] for each in rows for row in each])
    assert losses[0] == losses[1] != losses[2] and len(losses[0]) == 4
    assert ran == ["train", "export", "cache", "train", "export", "train", "export"]
    assert shared is not None and shared.is_whole()
