"""Fixtures that several test files share: parity cases, the tiny checkpoint, error budgets, the command line, training
runs in processes of their own.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run beside each other, on tiny tensors

import json
import multiprocessing
import re
import runpy
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.places import BAGEL

sys.path.append(str(Path(sys.prefix) / "xformers"))  # where `make test` puts it: out of everybody else's sight
MORE_CASES = os.environ.get("RECA_FAST_PARITY_CASES")
"""A folder of further parity cases, for whoever has some; every test that replays a case replays them too."""
CASES = [
    config.parent for place in (BAGEL, MORE_CASES) if place for config in sorted(Path(place).glob("*/config.json"))
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever trains, in this process or in others, is slow, and so are kernels in Triton's interpreter: `make
    test-fast` runs their references alone.
    """
    for item in items:
        if isinstance(item, pytest.Function):
            trains = {"launch", "begun"} & set(item.fixturenames)
            interprets = (
                "triton_kernels" in item.fixturenames or {"interpreter", "interpreting"} & vars(item.module).keys()
            )
            if trains or interprets or item.get_closest_marker("exhaustive"):
                item.add_marker("slow")


@pytest.fixture(params=CASES, ids=lambda folder: folder.name)
def case_folder(request: pytest.FixtureRequest) -> Path:
    """Every parity case of BAGEL, one after another; not to be written to."""
    return request.param


@pytest.fixture
def written_case() -> Path:
    """A small case with a joint run, computed by the scatter reference; not to be written to."""
    return BAGEL / "mha_joint"


@pytest.fixture
def recorded_case() -> Path:
    """The case with several pictures and a joint run, recorded from the authors' code; not to be written to."""
    return BAGEL / "recorded_joint"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder in the public layout, in fp32; not to be written to."""
    from reca_fast.models.bagel.tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_tiny_checkpoint(folder, hidden_size=64, intermediate_size=96, layers=2, vit_hidden_size=48, text_vocab=300)
    return folder


@pytest.fixture
def one_thread():
    """Tiny tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Budget = Callable[[Tensor, Tensor, Tensor], bool]


@pytest.fixture
def within_budget() -> Budget:
    """within_budget(got, truth, baseline): error <= 2 x the baseline's + 4 eps x truth, all as root mean squares.

    `truth` is fp64; `baseline` is the plain formula in the tested dtype, so the budget follows what the dtype can do.
    In fp64 both are the same numbers, whose own rounding nobody knows: 16 eps then, for some processors need 5.
    """

    def check(got: Tensor, truth: Tensor, baseline: Tensor) -> bool:
        assert got.dtype == baseline.dtype and got.shape == truth.shape
        if truth.numel() == 0:
            return True
        error, allowed, size = (
            x.square().mean().sqrt() for x in (got.double() - truth, baseline.double() - truth, truth)
        )
        roundings = 16 if got.dtype == torch.float64 else 4
        return bool(error <= 2 * allowed + roundings * torch.finfo(got.dtype).eps * size)

    return check


class Said(NamedTuple):
    """What one call of the command line did."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line that a user's mistake prints; fails when there was more than that, or another exit code."""
        assert self.code == 2, self
        assert re.fullmatch(r"reca-fast: .*[.?]\n", self.err), self.err
        return self.err


@pytest.fixture
def reca_fast(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """reca_fast("verify", folder, ...): the command in this process."""
    from reca_fast.cli import main

    def call(*args: object) -> Said:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return Said(code, *capsys.readouterr())

    return call


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.preloaded"])


class Training:
    """One or more processes that run `reca-fast train` like a user, or like torchrun when there are several."""

    def __init__(self, arguments: Sequence[str], log: Path, processes: int, before: str) -> None:
        self.log = log
        log.write_text("")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = []
        for rank in range(processes):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            environment = {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
            job = {
                "arguments": ["train", *arguments],
                "environment": environment if processes > 1 else {},
                "log": str(log),
                "before": before,
            }
            script = str(Path(__file__).with_name("training_process.py"))
            process = PROCESSES.Process(target=runpy.run_path, args=(script, {"job": job}), daemon=True)
            process.start()
            self.processes.append(process)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 60) -> int:
        """Exit code of the first process that did not succeed, else 0; fails the test when one hangs."""
        for process in self.processes:
            process.join(seconds)
            hangs = process.exitcode is None
            if hangs:
                self.kill()
            assert not hangs, f"still running after {seconds} s; it said:\n{self.said}"
        return next((process.exitcode for process in self.processes if process.exitcode), 0)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of various shapes, each with a caption beside it."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(24):
        width, height = (int(side) for side in random.integers(40, 90, 2))
        pixels = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"no. {number}")
    return folder


@pytest.fixture(scope="session")
def arguments(tiny_folder: Path, pictures: Path) -> Callable[[Path], list[str]]:
    """arguments(out): options of four short steps in the run folder `out`."""

    def options(out: Path) -> list[str]:
        text = f"--config tiny-bagel --model.name= --model.path {tiny_folder} --data.source {pictures} --out {out}"
        text += " --device cpu --steps 4 --save_every 2 --sample_every 0"
        text += " --data.packs_per_step 2 --data.tokens_per_pack 300"
        text += " --data.target_resize.max_size 32 --data.target_resize.min_size 16"
        text += " --data.condition_resize.max_size 56 --data.condition_resize.min_size 56"
        text += " --optim.lr 1e-4 --optim.warmup_steps 1 --optim.schedule constant"
        return text.split()

    return options


@pytest.fixture(scope="session")
def launch(arguments: Callable[[Path], list[str]]):
    """launch(out, *options, processes=1, before=""): a `Training` in the run folder `out`; `before` is code."""
    running = []

    def start(out: Path, *options: str, processes: int = 1, before: str = "") -> Training:
        out.mkdir(parents=True, exist_ok=True)
        running.append(Training([*arguments(out), *options], out / "said.txt", processes, before))
        return running[-1]

    yield start
    for training in running:
        training.kill()


@pytest.fixture(scope="session")
def train(launch):
    """train(out, ...): launch, wait, expect success; returns the lines of metrics."""

    def finish(out: Path, *options: str, **more: Any) -> list[dict[str, Any]]:
        training = launch(out, *options, **more)
        assert training.wait() == 0, training.said
        return metrics(out)

    return finish


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
