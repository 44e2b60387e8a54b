"""Fixtures that several test files share: parity cases, the tiny checkpoint, error budgets, the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT.parent / "shared" / "parity" / "bagel"
WRITTEN = ROOT / "tests" / "data" / "parity"
CASES = [
    RECORDED / "case_a",
    RECORDED / "case_b",
    WRITTEN / "gqa4_single_row",
    WRITTEN / "mha_joint",
    WRITTEN / "wide_head_drops",
]


def _need(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        pytest.skip(f"the recorded parity case {folder.name} is not here (looked in {folder.parent})")
    return folder


@pytest.fixture(params=CASES, ids=lambda folder: folder.name)
def case_folder(request: pytest.FixtureRequest) -> Path:
    """Every parity case, one after another; a recorded one that is absent skips."""
    return _need(request.param)


@pytest.fixture
def written_case() -> Path:
    """One case that is always here, with a joint run; not to be written to."""
    return WRITTEN / "mha_joint"


@pytest.fixture
def recorded_case() -> Path:
    """The recorded case with several pictures and a joint run; not to be written to."""
    return _need(RECORDED / "case_b")


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
    """

    def check(got: Tensor, truth: Tensor, baseline: Tensor) -> bool:
        assert got.dtype == baseline.dtype and got.shape == truth.shape
        if truth.numel() == 0:
            return True
        error, allowed, size = (
            x.square().mean().sqrt() for x in (got.double() - truth, baseline.double() - truth, truth)
        )
        return bool(error <= 2 * allowed + 4 * torch.finfo(got.dtype).eps * size)

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
        assert self.err.startswith("reca-fast: ") and self.err.endswith(".\n") and self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
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
