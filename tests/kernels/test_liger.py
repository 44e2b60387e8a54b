"""Liger's kernels, which stand in for ours on a GPU, compute what our references compute."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.kernels import rms_norm, swiglu

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("liger_kernel", reason="liger-kernel is not installed (pip install reca-fast[peers])")

from liger_kernel.ops import rms_norm as liger_norm

from reca_fast.kernels.common import implementation
from reca_fast.kernels.common.interpreter import interpreting
from reca_fast.kernels.common.liger import use_liger
from reca_fast.kernels.common.optional_triton import tl
from reca_fast.kernels.rms_norm.contract import _liger as norm_by_liger
from reca_fast.kernels.swiglu.contract import _liger as swiglu_by_liger

pytestmark = pytest.mark.usefixtures("one_thread")


def results(run, *moving: Tensor) -> list[Tensor]:
    out = run(*moving)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    return [out.detach(), *torch.autograd.grad(out, moving, upstream)]


def normal(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(size[-1])).requires_grad_()


def test_rms_norm_by_liger_is_ours(monkeypatch) -> None:
    monkeypatch.setattr(liger_norm, "rsqrt", lambda x: tl.rsqrt(x))  # libdevice's cannot be interpreted
    hidden_states, weight = normal(5, 40), normal(40)
    with interpreting():
        got = results(lambda x, w: norm_by_liger(x, w, 1e-6), hidden_states, weight)
    torch.testing.assert_close(got, results(rms_norm, hidden_states, weight))


def test_swiglu_by_liger_is_ours() -> None:
    with interpreting():
        got = results(swiglu_by_liger, normal(4, 24), normal(4, 25)[:, :24])
    torch.testing.assert_close(got, results(swiglu, normal(4, 24), normal(4, 25)[:, :24]))


def test_fake_tensors_have_nothing_to_launch_for(monkeypatch) -> None:
    """A step at true shapes that allocates nothing takes the plain formulas, on a machine with a GPU too."""
    monkeypatch.setattr(implementation, "_why_not_gpu", lambda device: None)
    with FakeTensorMode():
        assert not use_liger(torch.empty(4, 8, device="cuda"))
