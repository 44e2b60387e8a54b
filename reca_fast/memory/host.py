"""Host memory that a device copies from and into: weights, gradients and optimizer states that live there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_watchers: list[Callable[[Tensor], None]] = []


def host_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in host memory. With a GPU it is pinned (page-locked), which copies that overlap with
    computation need.

    torch rounds a pinned allocation up to a power of two, so ask for one large tensor and cut it, not for many. Copy to
    the device with `device_tensor.copy_(host_tensor, non_blocking=True)` into memory that is there already: `.to()`
    makes no copy where the device is the CPU.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=torch.cuda.is_available())
    for watcher in _watchers:
        watcher(tensor)
    return tensor


@contextmanager
def watch_host_memory(watcher: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `watcher` with every tensor that `host_empty` makes inside the context, so that a count of memory can tell
    host from device where both are the CPU.
    """
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
