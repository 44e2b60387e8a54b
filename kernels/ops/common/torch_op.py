"""Custom operations of torch: a function becomes one node for autograd, torch.compile, fake tensors and counters."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import wraps
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op


def torch_op(name: str, *, mutates_args: Iterable[str] = ()) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """`torch.library.custom_op("reca_fast::" + name)`, as a decorator, that runs on the GPU that holds its tensors.

    Triton launches on the current GPU. A model that is spread over several GPUs moves its tensors from one to the next
    without making that one current, so the operation does it.

    Args:
        name: of the operation, unique in this package.
        mutates_args: the arguments that the function writes to.
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
