"""What each operation has to move and multiply, for planning a step before it runs: `costs.<operation>(<sizes>)`.

`costs.qk_norm_rope(tokens=..., heads=..., kv_heads=..., head_dim=...)` is the cost of the forward and the backward pass
together, as the least that has to be done: what the kernels really move is within the factors of docs/kernels.md. The
sizes and what is counted stand in `costs.py` of the operation's folder.
"""

from collections.abc import Callable

from .common.registry import OPERATIONS, Cost


def __getattr__(name: str) -> Callable[..., Cost]:
    if name in OPERATIONS:
        return OPERATIONS[name].cost
    raise AttributeError(f"there is no operation {name!r}; there are {', '.join(sorted(OPERATIONS))}")


def __dir__() -> list[str]:
    return sorted(OPERATIONS)
