"""Between two lines of metrics nothing is read from the device: not by a step, an update, or the loop around them."""

import sys
import threading

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reca_fast.kernels.attention.segments import bounds
from reca_fast.models.bagel import BagelModel
from reca_fast.optim import SkippedSteps
from reca_fast.train.telemetry import Telemetry
from tests.train.short_run import running

pytestmark = [pytest.mark.usefixtures("quick", "one_thread")]

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}


class Reads(TorchDispatchMode):
    """Notes what makes the host wait for the device, in the thread of the loop.

    The CPU is the device here. So two readers are let through by name: `flops`, of a batch that stays on the host, and
    `bounds`, with which `varlen_attention` checks its segments, on a CPU alone.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.on, self.found = False, list[str]()
        tolist, flops = Tensor.tolist, BagelModel.flops

        def noted(tensor: Tensor):
            caller = sys._getframe(1).f_code
            if self.on and threading.current_thread() is threading.main_thread() and caller is not bounds.__code__:
                self.found.append(f"tolist in {caller.co_qualname}")
            return tolist(tensor)

        def on_the_host(*args):
            before, self.on = self.on, False
            try:
                return flops(*args)
            finally:
                self.on = before

        monkeypatch.setattr(Tensor, "tolist", noted)
        monkeypatch.setattr(BagelModel, "flops", on_the_host)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.on and func in READS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("joint", [False, True], ids=["reca", "joint"])
def test_steps_between_two_lines_read_nothing(configured, tmp_path, monkeypatch, joint) -> None:
    reads, lines = Reads(monkeypatch), list[int]()
    start, read, log = Telemetry.start, SkippedSteps.read, Telemetry.log

    def started(self, *args):
        start(self, *args)
        reads.on = True

    def line_due(self):
        reads.on = False
        return read(self)

    def logged(self, step, *args):
        lines.append(step)
        log(self, step, *args)
        reads.on = step < 6

    monkeypatch.setattr(Telemetry, "start", started)
    monkeypatch.setattr(SkippedSteps, "read", line_due)
    monkeypatch.setattr(Telemetry, "log", logged)
    config = configured(tmp_path / "run", joint)
    config.steps, config.log_every, config.save_every, config.sample_every = 6, 3, 0, 0
    config.optim.ema_decay = 0.9
    with reads:
        running.train(config)
    assert lines == [3, 6] and reads.found == []


def test_a_read_would_be_found(monkeypatch) -> None:
    with Reads(monkeypatch) as reads:
        reads.on = True
        torch.ones(1).item()
        torch.ones(2).tolist()
        bool(torch.ones(()) > 0)
    assert len(reads.found) == 3
