"""`triton` and `triton.language`; stand-ins where Triton is not installed, so that files with kernels can be imported.

Files with kernels import `triton` and `tl` from here and from nowhere else.
"""

from typing import Any


class _Absent:
    """Takes the place of a Triton module that is not installed: any attribute of it, and any call, is itself again.

    Decorating a function with it returns the function, so that `@triton.jit` and `@triton.jit(...)` both define one.
    """

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, function: Any = None, **_: Any) -> Any:
        return self if function is None else function


triton: Any
tl: Any
try:
    import triton  # type: ignore[no-redef]
    import triton.language as tl  # type: ignore[no-redef]

    INSTALLED = True
    NEEDS_LIMITS = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)
except ModuleNotFoundError:
    triton, tl = _Absent(), _Absent()
    INSTALLED = NEEDS_LIMITS = False
"""INSTALLED: whether Triton can be imported. NEEDS_LIMITS: whether it is older than 3.8; such a Triton gives some
kernels half as many registers again as they need unless they are launched with a limit.
"""

LAUNCH: dict[str, Any] = {"enable_fp_fusion": True}
"""Options of every launch. Triton 3.10 stops turning a * b + c into one instruction unless it is asked to; the register
counts and the rounding that are tested here are those with it.
"""

if INSTALLED and triton.knobs.runtime.interpret:
    from .interpreter import make_exact

    make_exact()
