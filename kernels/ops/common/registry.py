"""The one place where an operation is entered: its folder's `__init__.py` calls `operation(...)`.

Everything that goes through all operations reads `OPERATIONS`: the planner's costs (`reca_fast.kernels.costs`), torch's
FLOP counter, `reca-fast doctor`, the benchmarks, the compile gates and the tests.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.flop_counter import register_flop_formula


class Cost(NamedTuple):
    """What an operation has to do however it is written: bytes to and from memory, FLOPs of matrix products."""

    bytes: float
    flops: float = 0.0


class Operation(NamedTuple):
    """One operation: a folder of kernels/ops."""

    name: str
    """Of its folder, of its cost, and of its case in bench/ops."""
    functions: tuple[str, ...]
    """Names of its public functions."""
    cost: Callable[..., Cost]
    """Sizes as keyword arguments -> cost of the forward and the backward pass together."""
    computed_by: Literal["triton", "liger", "library"]
    """Whose kernels run on a GPU: Triton kernels of its folder; Liger's; or one of several libraries that it chooses
    among by itself."""


OPERATIONS: dict[str, Operation] = {}


def operation(
    name: str,
    *,
    functions: Sequence[Callable[..., Any]],
    cost: Callable[..., Cost],
    flops: Mapping[str, Callable[..., int]] | None = None,
    flops_of_values: Mapping[str, Callable[..., int]] | None = None,
    computed_by: Literal["triton", "liger", "library"] = "triton",
) -> None:
    """Enter an operation; its custom operations of torch (`torch_op`) must be defined already.

    Args:
        name: of its folder.
        functions: what the folder offers to the rest of the program.
        cost: see `Operation`. Bytes are the minimum: every input read once, every output written once. FLOPs are those
            of matrix products, a multiply-add being 2.
        flops: custom operation -> the FLOPs of its matrix products, for `torch.utils.flop_counter.FlopCounterMode`,
            which counts 0 for a custom operation without a formula. A formula takes the arguments of the operation, a
            shape in the place of each tensor.
        flops_of_values: the same for formulas that need the tensors themselves.
        computed_by: see `Operation`.

    Raises:
        ValueError: the name is entered already.
    """
    if name in OPERATIONS:
        raise ValueError(f"operation {name!r} is entered twice")
    OPERATIONS[name] = Operation(name, tuple(function.__name__ for function in functions), cost, computed_by)
    for formulas, raw in ((flops or {}, False), (flops_of_values or {}, True)):
        for op, formula in formulas.items():
            register_flop_formula(getattr(torch.ops.reca_fast, op), get_raw=raw)(formula)
