"""Every lever on every tiny model: the losses of a run without it, or a refusal that names it."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from reca_fast.memory import apply_levers
from reca_fast.models import TINY
from tests.combinations import sampled

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


STEPS = 3


class Lever(NamedTuple):
    options: str
    apart: float = 1e-5  # how far, as a share, the losses may be from those without it
    steps: int = STEPS  # how many of them are compared


LEVERS = {
    "recompute": Lever("--memory.recompute blocks"),
    "selective": Lever("--memory.recompute selective"),
    "budget": Lever("--memory.recompute budget --memory.budget_gib 0.002"),
    "keep_on": Lever("--memory.keep_on host"),
    "mlp_rows": Lever("--memory.mlp_rows 16"),
    "compile": Lever("--memory.compile true"),
    "inductor": Lever("--memory.compile true", apart=1e-4),
    "order": Lever("--memory.order layer"),
    "gradients": Lever("--memory.order layer --memory.gradients host"),
    "twice": Lever("--memory.order layer --memory.gradients twice"),
    "swap": Lever("--memory.order layer --memory.recompute blocks --memory.gradients host --memory.swap 1"),
    "frozen_on": Lever("--memory.order layer --memory.recompute blocks --memory.frozen_on host"),
    "frozen": Lever("--memory.frozen int8", apart=0.05),
    "trained": Lever("--model.precision bf16 --memory.trained bf16", apart=0.05),
    "matmul": Lever("--model.precision bf16 --memory.matmul int8", apart=0.1),
    "rank": Lever("--lora.rank 4", steps=1),  # adapters begin at zero and learn otherwise
    "kind": Lever("--optim.kind adamw8bit", apart=0.05),
}
"""The last part of an option that each is about -> the lever."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("levers")


@pytest.fixture
def train(reca_fast, folders, monkeypatch) -> Callable[..., tuple[str, list[float]]]:
    """train(name, lever): the refusal of a few steps of a tiny recipe, or the losses. The compiler is `aot_eager`,
    which differentiates the graphs and needs no other compiler.
    """
    monkeypatch.setattr("reca_fast.train.assemble.apply_levers", partial(apply_levers, compiler="aot_eager"))

    def run(name: str, lever: str = "plain") -> tuple[str, list[float]]:
        out = folders / f"{name}-{lever}"
        if not out.exists():
            text = f"--out {out} --steps {STEPS} --device cpu --save_every 0 --data.packs_per_step 2"
            text += " --optim.warmup_steps 2"
            if lever != "plain":
                text += f" --model.path {folders / f'{name}-plain' / name} {LEVERS[lever].options}"
            said = reca_fast("train", "--config", name, *text.split())
            if said.code:
                return said.sentence, []
        return "", [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]

    return run


@sampled(1, name=list(TINY), lever=[lever for lever in LEVERS if lever not in ("compile", "inductor")])
def test_it_changes_no_loss_or_is_refused_by_name(name, lever, train) -> None:
    check(name, lever, train)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TINY)
def test_the_compiler_changes_no_loss_or_is_refused_by_name(name, train) -> None:
    """Half a minute each, for graphs are traced anew."""
    check(name, "compile", train)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TINY)
@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs the C++ compiler g++ for a CPU")
def test_inductor_changes_no_loss(name, train, monkeypatch) -> None:
    """Some minutes each, for it writes C++. What it cannot lay out in memory it refuses, where `aot_eager` does not."""
    monkeypatch.setattr("reca_fast.train.assemble.apply_levers", apply_levers)
    check(name, "inductor", train)


def check(name: str, lever: str, train: Callable[..., tuple[str, list[float]]]) -> None:
    _, plain = train(name)
    assert len(plain) == STEPS
    refusal, losses = train(name, lever)
    if refusal:
        assert lever in refusal
    else:
        steps = LEVERS[lever].steps
        assert losses[:steps] == pytest.approx(plain[:steps], rel=LEVERS[lever].apart)
