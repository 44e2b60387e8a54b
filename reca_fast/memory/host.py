"""Host memory that a device copies from and into: weights, gradients and optimizer states that live there."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from reca_fast.errors import UserError

_watchers: list[Callable[[Tensor], None]] = []


def host_empty(shape: Sequence[int], dtype: torch.dtype, *, pinned: bool = True) -> Tensor:
    """An uninitialised tensor in host memory. With a GPU it is pinned, as `pin` does it.

    Ask for one large tensor and cut it, not for many. Copy to the device with
    `device_tensor.copy_(host_tensor, non_blocking=True)` into memory that is there already: `.to()` makes no copy where
    the device is the CPU.

    Args:
        pinned: False leaves it to the caller to call `pin`, once the tensor is filled: until then, only what was
            written takes memory.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    is_on_host(tensor)
    return pin(tensor) if pinned else tensor


def pin(tensor: Tensor) -> Tensor:
    """Lock a tensor's pages in memory, which copies need to overlap with the GPU's work. Does nothing without a GPU.

    torch's own pinned allocations are rounded up to powers of two (16 GiB for the 12.2 of BAGEL's trained weights), so
    the pages of an ordinary one are registered instead.

    Raises:
        UserError: the system does not allow so much pinned memory.
    """
    if not torch.cuda.is_available() or isinstance(tensor, FakeTensor) or not tensor.nbytes:
        return tensor
    runtime = torch.cuda.cudart()
    address = tensor.data_ptr()
    if code := int(runtime.cudaHostRegister(address, tensor.nbytes, 0)):
        raise UserError(
            f"{tensor.nbytes / 2**30:.1f} GiB of host memory cannot be pinned (CUDA error {code}): free host memory, "
            "raise the limit of locked memory (`ulimit -l`), or keep more on the GPU (lower memory.swap, "
            "memory.frozen_on device, memory.gradients twice)."
        )
    weakref.finalize(tensor.untyped_storage(), runtime.cudaHostUnregister, address)
    return tensor


def is_on_host(tensor: Tensor) -> None:
    """Tell who watches that the memory of this tensor, made elsewhere, is the host's whatever the device."""
    for watcher in _watchers:
        watcher(tensor)


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
