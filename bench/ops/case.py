"""What a benchmark case says of one operation, for `bench/throughput.py` and the compile and traffic tests."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from reca_fast.kernels import OPERATIONS
from reca_fast.kernels.common.registry import Cost

Inputs = dict[str, Any]
Step = Callable[[Inputs], list[Tensor]]
"""Forward and backward on the inputs: the outputs, then the gradients of everything that has one."""


@dataclass(frozen=True)
class Gate:
    """What the assembler's output of one kernel must satisfy on every target."""

    max_registers: int
    min_occupancy: float
    load_bits: int = 128  # widest global load
    store_bits: int = 128
    tensor_core: bool = False
    max_instructions_per_element: float | None = None
    elements_per_thread: int = 0
    spill_bytes: int = 0  # allowed of an older Triton alone


VARIANT: ContextVar[str] = ContextVar("variant", default="")


@contextmanager
def variant(name: str) -> Iterator[None]:
    """Launches inside may have a gate of their own, so that what one variant cannot have is not forgiven the others."""
    token = VARIANT.set(name)
    try:
        yield
    finally:
        VARIANT.reset(token)


def _all(shape: Mapping[str, int]) -> Mapping[str, int]:
    return shape


@dataclass(frozen=True)
class Case:
    """One operation: its shapes, its inputs, everyone who can compute it, its compile-time gates."""

    name: str
    """Of the operation in `reca_fast.kernels.OPERATIONS`, which also knows its cost."""
    about: str
    """One line for a newcomer."""
    shapes: Mapping[str, Mapping[str, int]]
    """Sizes by name: "real" as in training, "small" for the interpreter (seconds), and where that says nothing of a
    CPU's time, "cpu"."""
    inputs: Callable[[Mapping[str, int], torch.dtype, torch.device, torch.Generator], Inputs]
    ours: Step
    """The public function, with whatever implementation `use_kernels` selects."""
    eager: Step
    """What the authors' code does, operation by operation: what all others are compared with."""
    compile: Callable[[], None] | None = None
    """Launches every kernel with the strides and the alignment of training, on CPU tensors. None where the kernels are
    a library's."""
    gates: Mapping[str, Gate] = field(default_factory=dict)
    """Kernel -> what the assembler's output must satisfy. "kernel variant" holds for launches inside `variant(...)`
    where those differ."""
    older_gates: Mapping[str, Gate] = field(default_factory=dict)
    """Gates that differ for Triton before 3.8."""
    peers: Mapping[str, Step] = field(default_factory=dict)
    """Other libraries that compute the same, e.g. "liger": those that can be imported."""
    sizes: Callable[[Mapping[str, int]], Mapping[str, int]] = _all
    """A shape -> the sizes that the operation's cost takes."""
    count_flops: bool = True
    """Whether FLOPs are compared with the cost's."""
    goal: str = ""
    """The project's goal for this operation, in words."""
    max_launches: int | None = None
    """The goal in figures: launches forward and backward together, matrix products excluded."""
    max_ratio: float | None = None
    """The goal in figures: bytes moved over the minimum."""

    def minimum(self, shape: Mapping[str, int], dtype: torch.dtype) -> Cost:
        """What has to be moved and multiplied at these sizes, however the operation is written."""
        cost = OPERATIONS[self.name].cost(**self.sizes(shape), itemsize=dtype.itemsize)
        return cost if self.count_flops else cost._replace(flops=0.0)

    def gate(self, kernel: str, variant: str) -> str:
        """The key in `gates` that holds for a kernel of a variant: its own, else that of every launch."""
        return own if (own := f"{kernel} {variant}") in self.gates else kernel

    def gates_of(self, triton: str) -> dict[str, Gate]:
        """The gates that hold for what this version of Triton compiles."""
        older = tuple(int(part) for part in triton.split(".")[:2]) < (3, 8)
        return {**self.gates, **(self.older_gates if older else {})}


def gradients(outputs: Tensor | tuple[Tensor, ...], inputs: Inputs) -> list[Tensor]:
    """Outputs, then the gradients of all inputs that require one, for an upstream gradient of ones."""
    given = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
    with _disable_current_modes():  # making them is the caller's business and does not count
        upstream = [torch.ones_like(x) for x in given]
    return [*(x.detach() for x in given), *torch.autograd.grad(given, wanted, upstream)]
