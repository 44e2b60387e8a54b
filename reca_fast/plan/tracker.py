"""Who holds how much memory, and when: every storage that torch makes, from its birth to its end."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter

from reca_fast.memory.host import watch_host_memory

Category = Literal["weights", "gradients", "optimizer", "activations", "workspace"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
ROUNDING = 512
"""Bytes that CUDA's allocator rounds every piece of memory up to."""


@dataclass(eq=False)
class Block:
    """The memory of one storage: several tensors may look at it."""

    category: Category
    nbytes: int = 0
    on_host: bool = False


@dataclass(frozen=True)
class Usage:
    """Bytes by category at one moment."""

    by_category: Mapping[Category, int]

    @property
    def total(self) -> int:
        return sum(self.by_category.values())


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of all storages that are made inside its context, on the device and in host memory, and tells at
    any time how many there are and what the most was, by category.

    It works on tensors with numbers and on fake ones alike, so a prediction can be compared with a run. Views count
    once, tensors on the meta device not at all; a storage that is resized counts at its new size; memory from
    `reca_fast.memory.host.host_empty` counts as host memory. What a custom operation takes and gives back while it
    computes is not seen. The category of memory is that of the moment in which it is made, until `assign` says better:
    activations where autograd records, and workspace (what an operation or an update takes for a while) elsewhere.

    A thread that runs part of a step enters the tracker again, as it does with every dispatch mode; it may be entered
    any number of times.

    Args:
        rounding: bytes that each storage is rounded up to.
    """

    def __init__(self, rounding: int = ROUNDING) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounding = rounding
        self.making: Category | None = None
        """What everything that is made now is counted as; None: told by whether autograd records."""
        self._blocks: dict[int, Block] = {}
        self._ends: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._changes: list[tuple[Block, int]] = []
        self._lock = threading.RLock()  # the end of a storage may be told in any thread, and inside of any call
        self._entered = 0
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        with self._lock:
            self._entered += 1
            if self._entered == 1:
                self._patches.enter_context(watch_host_memory(self._is_on_host))
                self._patches.enter_context(_watch_resizes(self._resized))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        with self._lock:
            self._entered -= 1
            if self._entered == 0:
                self._patches.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(is_wrapper(kind) for kind in types):
            return NotImplemented  # the operations on what it wraps come here one by one
        result = func(*args, **kwargs or {})
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":  # which takes no memory
                self._see(tensor)
        return result

    def assign(self, tensors: Iterable[Tensor | None], category: Category) -> None:
        """Count the memory of these tensors as `category`, also at the moments that are past. Memory that was made
        outside of the context counts from now on.
        """
        for tensor in tensors:
            for part in parts(tensor):
                self._see(part).category = category

    @contextmanager
    def making_as(self, category: Category) -> Iterator[None]:
        """Count all memory that is made inside as `category`."""
        before, self.making = self.making, category
        try:
            yield
        finally:
            self.making = before

    def forget_peak(self) -> None:
        """Let the most so far be what there is now."""
        with self._lock:
            self._changes = [(block, block.nbytes) for block in self._blocks.values() if block.nbytes]

    def now(self, *, host: bool = False) -> Usage:
        """What is held now, on the device or in host memory."""
        with self._lock:
            return _usage((block, block.nbytes) for block in self._blocks.values() if block.on_host == host)

    def peak(self, *, host: bool = False) -> Usage:
        """The most that was held at one moment, on the device or in host memory, and of what it was made up."""
        with self._lock:
            changes = [(block, change) for block, change in self._changes if block.on_host == host]
        total = most = last = 0
        for position, (_, change) in enumerate(changes):
            total += change
            if total > most:
                most, last = total, position + 1
        return _usage(changes[:last])

    def is_on_host(self, tensor: Tensor) -> bool:
        """Whether the tensor's memory is host memory, as far as the tracker saw it made."""
        with self._lock:
            block = self._blocks.get(tensor.untyped_storage()._cdata)
        return block is not None and block.on_host

    def _see(self, tensor: Tensor) -> Block:
        """The block of the tensor's storage, entered if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        with self._lock:
            block = self._blocks.get(key)
            if block is None:
                block = self._blocks[key] = Block(self.making or _kind_of_moment())
                self._ends[key] = weakref.ref(storage, lambda _: self._ended(key))
                self._set(block, storage.nbytes())
        return block

    def _set(self, block: Block, nbytes: int) -> None:
        rounded = -(-nbytes // self.rounding) * self.rounding
        change, block.nbytes = rounded - block.nbytes, rounded
        if change:
            self._changes.append((block, change))

    def _ended(self, key: int) -> None:
        with self._lock:
            del self._ends[key]
            self._set(self._blocks.pop(key), 0)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        with self._lock:
            block = self._blocks.get(storage._cdata)
            if block is not None:
                self._set(block, storage.nbytes())

    def _is_on_host(self, tensor: Tensor) -> None:
        self._see(tensor).on_host = True


def is_wrapper(kind: type) -> bool:
    """Whether it is a kind of tensor made of other tensors, which do the work: DTensor, quantised weights."""
    return hasattr(kind, "__tensor_flatten__")


def parts(tensor: Tensor | None) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of: itself, or what a wrapper (a DTensor, a quantised weight) wraps."""
    if tensor is None:
        return
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from parts(getattr(tensor, name))


def _kind_of_moment() -> Category:
    return "activations" if torch.is_grad_enabled() else "workspace"


def _usage(changes: Iterable[tuple[Block, int]]) -> Usage:
    sums = dict.fromkeys(CATEGORIES, 0)
    for block, change in changes:
        sums[block.category] += change
    return Usage(sums)


@contextmanager
def _watch_resizes(watcher: Callable[[torch.UntypedStorage], None]) -> Iterator[None]:
    """FSDP frees the weights that it gathered by resizing their storage to nothing, which no dispatch mode sees."""
    resize = torch.UntypedStorage.resize_

    def watched(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        watcher(storage)
        return result

    torch.UntypedStorage.resize_ = watched  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
