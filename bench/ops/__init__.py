"""The benchmark cases: `bench/ops/<operation>.py` holds that of one operation, as `CASE`.

Operations are those that `reca_fast.kernels` has entered; one whose file is missing has no benchmark.
"""

from importlib import import_module
from pathlib import Path

from reca_fast.kernels import OPERATIONS

from .case import Case

NAMES = tuple(name for name in sorted(OPERATIONS) if Path(__file__).with_name(f"{name}.py").exists())
"""The operations that have a benchmark."""

WITH_KERNELS = tuple(name for name in NAMES if OPERATIONS[name].computed_by == "triton")
"""Those among them with Triton kernels of their own."""


def case_of(name: str) -> Case:
    """The benchmark of the operation `name`, one of NAMES."""
    case: Case = import_module(f"bench.ops.{name}").CASE
    return case
