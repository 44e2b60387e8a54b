"""Which implementation of an operation computes: its Triton kernels or its plain-torch reference.

One setting decides for all operations: `use_kernels("auto" | "triton" | "reference")` (config `kernels`), or, while
that is auto, the environment variable RECA_FAST_KERNELS. "auto" takes Triton on a GPU that can run it and the reference
elsewhere. Asking for "triton" where it cannot run raises a ValueError that says why.

With TRITON_INTERPRET=1 set before Python starts, "triton" runs the kernels on CPU tensors: slowly, for checking them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from .optional_triton import INSTALLED, triton

MODES = ("auto", "triton", "reference")
VARIABLE = "RECA_FAST_KERNELS"
"""Environment variable that holds a mode, for whoever cannot change the setting."""

_mode = "auto"
_gpu_assumed = False


@contextmanager
def assume_gpu() -> Iterator[None]:
    """Inside, operations are chosen for fake tensors on the CPU as on a GPU that can run all of them: the step that is
    planned on a machine without a GPU is the one that a GPU runs. Real tensors on the CPU are not meant: nothing could
    compute on them.
    """
    global _gpu_assumed
    before, _gpu_assumed = _gpu_assumed, True
    try:
        yield
    finally:
        _gpu_assumed = before


def gpu_assumed() -> bool:
    """Whether `assume_gpu` is in force."""
    return _gpu_assumed


def use_kernels(mode: str) -> None:
    """Choose a mode, one of MODES, for the whole process.

    Raises ValueError for an unknown mode. Whether it can be had is checked when an operation is called.
    """
    global _mode
    _mode = _checked(mode, "kernels")


@contextmanager
def kernels(mode: str) -> Iterator[None]:
    """`use_kernels(mode)` inside a `with` block; the mode before is in force again after it."""
    before = _mode
    use_kernels(mode)
    try:
        yield
    finally:
        use_kernels(before)


def kernel_mode() -> str:
    """The mode in force, one of MODES."""
    if _mode == "auto" and (wish := os.environ.get(VARIABLE)):
        return _checked(wish, VARIABLE)
    return _mode


def implementation(*tensors: Tensor) -> str:
    """ "triton" or "reference", for an operation on these tensors.

    Raises ValueError when the setting asks for Triton and it cannot run on them.
    """
    mode = kernel_mode()
    if mode == "reference":
        return "reference"
    reason = why_not_triton(tensors[0].device)
    if reason is None and any(x.dtype == torch.float64 for x in tensors):
        reason = "the kernels compute in float32 and an argument is float64"
    if mode == "auto":
        return "triton" if reason is None and (tensors[0].is_cuda or _gpu_assumed) else "reference"
    if reason is not None:
        raise ValueError(f"kernels=triton cannot run here: {reason}; use kernels=reference or kernels=auto")
    return "triton"


def runs_triton(*tensors: Tensor | None) -> bool:
    """Whether a kernel is to be launched on those of the tensors that are not None: `implementation` says "triton", and
    the first of them is not empty.
    """
    given = [x for x in tensors if x is not None]
    return implementation(*given) == "triton" and given[0].numel() > 0


def why_not_triton(device: torch.device) -> str | None:
    """None when Triton's kernels can run on `device`, else the reason as a phrase."""
    if _gpu_assumed:
        return None
    if not INSTALLED:
        return "Triton is not installed (pip install triton)"
    if device.type == "cpu":
        if not triton.knobs.runtime.interpret:
            return "CPU tensors need TRITON_INTERPRET=1 in the environment when Python starts"
        return None
    if device.type != "cuda":
        return f"there are no kernels for the device {device.type}"
    return _why_not_gpu(device)


@cache
def _why_not_gpu(device: torch.device) -> str | None:
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"sm_{major}{minor} is older than sm_80"


def _checked(mode: str, where: str) -> str:
    if mode not in MODES:
        raise ValueError(f"{where}={mode!r}: expected one of {', '.join(MODES)}")
    return mode
