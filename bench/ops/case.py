"""What `bench/throughput.py` and the compile and traffic tests need to know of one operation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

Inputs = dict[str, Any]
Step = Callable[[Inputs], list[Tensor]]
"""Forward and backward on the inputs: the outputs, then the gradients of everything that has one."""


@dataclass(frozen=True)
class Minimum:
    """What the operation must move and compute however it is written: every input once, every output once."""

    bytes: float
    flops: float = 0.0


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


@dataclass(frozen=True)
class OpBench:
    """One operation: its shapes, its inputs, everyone who can do it, its minimum, its compile-time gates."""

    name: str
    about: str  # one line for a newcomer
    shapes: Mapping[str, Mapping[str, int]]  # "real" (anchors) and "small" (seconds in the interpreter)
    inputs: Callable[[Mapping[str, int], torch.dtype, torch.device, torch.Generator], Inputs]
    ours: Step  # whatever implementation `use_kernels` selects
    eager: Step  # the sequence that the authors' code runs
    minimum: Callable[[Mapping[str, int], torch.dtype], Minimum]
    # Every launch with production strides and alignment, on CPU tensors; None where the kernels are a library's.
    compile: Callable[[], None] | None
    gates: Mapping[str, Gate]  # kernel -> gate; "kernel variant" for launches inside `variant`, where those differ
    older_gates: Mapping[str, Gate] = field(default_factory=dict)  # those that differ for Triton before 3.8
    peers: Mapping[str, Step] = field(default_factory=dict)  # e.g. "liger": only those that can be imported
    goal: str = ""  # the project's goal for this operation, in words
    max_launches: int | None = None  # the goal in figures, forward and backward together, matrix products excluded
    max_ratio: float | None = None  # bytes moved over the minimum

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
