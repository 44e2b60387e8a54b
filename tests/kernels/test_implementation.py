"""One setting decides which implementation runs, and says why it cannot run."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest
import torch

from reca_fast.kernels.common import implementation as choice
from reca_fast.kernels.common.implementation import VARIABLE, assume_gpu, implementation, kernel_mode, kernels
from reca_fast.kernels.common.torch_op import torch_op

CPU = torch.zeros(1)


def test_auto_takes_the_reference_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert kernel_mode() == "auto" and implementation(CPU) == "reference"


def test_environment_decides_while_the_setting_is_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(ValueError, match="kernels=triton cannot run here"):
        implementation(CPU)
    with kernels("reference"):
        assert implementation(CPU) == "reference"


def test_a_gpu_is_assumed_where_a_step_is_planned() -> None:
    with assume_gpu():
        assert implementation(CPU) == "triton"
        with kernels("reference"):
            assert implementation(CPU) == "reference"
    assert implementation(CPU) == "reference"


@pytest.mark.parametrize("where", ["kernels", VARIABLE])
def test_an_unknown_mode_changes_nothing(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=rf"^{where}='fast': expected one of auto, triton, reference"):
        if where == VARIABLE:
            monkeypatch.setenv(VARIABLE, "fast")
            kernel_mode()
        else:
            choice.use_kernels("fast")
    assert choice._mode == "auto"


def test_reasons_name_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with kernels("triton"):
        with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
            implementation(CPU)
        with pytest.raises(ValueError, match="no kernels for the device meta"):
            implementation(CPU.to("meta"))
        monkeypatch.setattr(choice, "INSTALLED", False)
        with pytest.raises(ValueError, match="pip install triton"):
            implementation(CPU)


def test_float64_needs_the_reference() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from reca_fast.kernels.common.interpreter import interpreting

    with kernels("triton"), interpreting():
        assert implementation(CPU) == "triton"
        with pytest.raises(ValueError, match="float64"):
            implementation(CPU.double())


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # any import of it raises ModuleNotFoundError
import torch, reca_fast.kernels as k
from reca_fast.kernels.common.optional_triton import INSTALLED
assert not INSTALLED
q = torch.randn(3, 2, 8)
angles = torch.zeros(3, 8)
print(k.qk_norm_rope(q, q, torch.ones(8), torch.ones(8), angles + 1, angles)[0].shape)
"""


@pytest.mark.slow
def test_everything_imports_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[3, 2, 8]" in done.stdout


INTERPRETED = """
import torch, reca_fast.kernels as k
draw = torch.Generator().manual_seed(0)
q, g = (torch.randn(3, 2, 8, generator=draw) for _ in range(2))
angles = torch.rand(3, 4, generator=draw).repeat(1, 2)
q.requires_grad_()
out = k.qk_norm_rope(q, q.detach(), torch.ones(8), torch.ones(8), angles.cos(), angles.sin())[0]
out.backward(g)
print(out.flatten().tolist() + q.grad.flatten().tolist())
"""


@pytest.mark.slow
def test_environment_variables_run_the_kernels_on_a_cpu() -> None:
    """As a user types it: TRITON_INTERPRET=1 RECA_FAST_KERNELS=triton python ..."""
    pytest.importorskip("triton", reason="Triton is not installed")
    variables = os.environ | {"TRITON_INTERPRET": "1", VARIABLE: "triton"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with contextlib.redirect_stdout(io.StringIO()) as here, kernels("reference"):
        exec(INTERPRETED, {})
    torch.testing.assert_close(*(torch.tensor(json.loads(said)) for said in (done.stdout, here.getvalue())))


def test_operations_run_on_the_gpu_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current GPU, and hooks that spread a model over several do not switch it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    entered = []

    class Recorded(contextlib.nullcontext):
        def __init__(self, device: torch.device) -> None:
            super().__init__()
            entered.append(device)

    monkeypatch.setattr(torch.cuda, "device", Recorded)
    doubled = torch_op("test_doubled")(_double)
    body = doubled._init_fn
    with FakeTensorMode():
        body([], None, torch.empty(2, device="cuda:1"))
        body([torch.empty(2, device="cuda:0")], None, torch.empty(2))
        body([], None, torch.empty(2))
    assert entered == [torch.device("cuda:1"), torch.device("cuda:0")]
    assert torch.equal(doubled([], None, torch.ones(2)), torch.full((2,), 2.0))


def _double(several: list[torch.Tensor], absent: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return x * 2
