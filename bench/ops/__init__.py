"""The operations that the benchmark knows, one file each."""

from importlib import import_module
from pathlib import Path

from .case import OpBench

NAMES = tuple(sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__", "case"}))


def load(name: str) -> OpBench:
    """The benchmark of the operation `name`, one of NAMES."""
    bench: OpBench = import_module(f"bench.ops.{name}").BENCH
    return bench


KERNELS = tuple(name for name in NAMES if load(name).compile is not None)
"""Those of NAMES that have kernels of ours."""
