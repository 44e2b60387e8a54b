"""Which implementation of an operation runs: its Triton kernels or its plain-torch reference.

One setting decides for all operations: `use_kernels("auto" | "triton" | "reference")` (config `kernels`), or, while
that is auto, the environment variable RECA_FAST_KERNELS. "auto" takes Triton on a GPU that can run it and the reference
elsewhere. Asking for "triton" where it cannot run raises and says why.

With TRITON_INTERPRET=1 set before Python starts, "triton" runs the kernels on CPU tensors: slowly, for checking them.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, wraps
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op

MODES = ("auto", "triton", "reference")
VARIABLE = "RECA_FAST_KERNELS"
# Triton 3.10 stops contracting a * b + c by default; our instruction counts and rounding are those with it.
LAUNCH: dict[str, Any] = {"enable_fp_fusion": True}


class _Absent:
    """Stands for `triton` and `tl` where Triton is not installed, so that files with kernels can be imported."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, function: Any = None, **_: Any) -> Any:
        return self if function is None else function  # `@triton.jit(...)` is called once more


triton: Any
tl: Any
try:
    import triton  # type: ignore[no-redef]
    import triton.language as tl  # type: ignore[no-redef]

    INSTALLED = True
    # Before 3.8, left alone, it takes half as many registers again for some kernels; those are launched with a limit.
    NEEDS_LIMITS = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)
except ModuleNotFoundError:
    triton, tl = _Absent(), _Absent()
    INSTALLED = NEEDS_LIMITS = False

_mode = "auto"


def use_kernels(mode: str) -> None:
    """Choose for the whole process. Raises ValueError for an unknown mode; availability is checked at the call."""
    global _mode
    _mode = _checked(mode, "kernels")


@contextmanager
def kernels(mode: str) -> Iterator[None]:
    """`use_kernels` for the duration of a block."""
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
        return "triton" if reason is None and tensors[0].is_cuda else "reference"
    if reason is not None:
        raise ValueError(f"kernels=triton cannot run here: {reason}; use kernels=reference or kernels=auto")
    return "triton"


def runs_triton(*tensors: Tensor | None) -> bool:
    """`implementation` of those tensors that are there, and there is something to launch for."""
    given = [x for x in tensors if x is not None]
    return implementation(*given) == "triton" and given[0].numel() > 0


def why_not_triton(device: torch.device) -> str | None:
    """None when Triton's kernels can run on `device`, else the reason as a phrase."""
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


def operation(name: str, *, mutates_args: Iterable[str] = ()) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """`torch.library.custom_op("reca_fast::" + name)` that runs on its tensors' GPU, whichever is the current one.

    Triton launches on the current GPU, and a model that hooks spread over several moves its tensors without switching.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        @wraps(function)
        def there(*args: Any) -> Any:
            tensors = chain.from_iterable(x if isinstance(x, list) else (x,) for x in args)
            device = next(x.device for x in tensors if isinstance(x, Tensor))
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                return function(*args)

        return custom_op(f"reca_fast::{name}", there, mutates_args=tuple(mutates_args))

    return register


def _checked(mode: str, where: str) -> str:
    if mode not in MODES:
        raise ValueError(f"{where}={mode!r}: expected one of {', '.join(MODES)}")
    return mode


if INSTALLED and triton.knobs.runtime.interpret:
    from .interpreter import make_exact

    make_exact()
