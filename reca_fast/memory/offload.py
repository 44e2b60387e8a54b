"""What the backward pass needs of a block waits in host memory, and comes back just before it is needed.

While a block runs, everything that its backward pass will read goes through here, block by block. What belongs to one
run of one block travels together, in one stretch of host memory. Copies run on a stream of their own: out while the
next block computes, and back while the block computes that goes backwards before. Which comes back next is known from
the step before, or guessed to be the reverse of the forward pass.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from .host import host_empty
from .identity import identity

ALIGNMENT = 256
"""Bytes at a multiple of which each tensor begins in host memory."""
SMALLEST = 2**20
"""Bytes below which a tensor stays: moving it would cost more than it frees."""

_here = threading.local()
"""`_here.run`: the run of a block that is under way in this thread, or None."""


def keep_on_host(blocks: Sequence[nn.Module], smallest: int = SMALLEST) -> None:
    """Make what each block keeps for its backward pass wait in host memory. Pull it after recomputation, which decides
    what that is.

    Weights, small tensors, and inputs that all blocks share stay on the device, and so does what the block that runs
    last keeps, until the backward pass has used it. Host memory is allocated in the first steps and used again.

    Price: each of these bytes crosses the bus twice in a step; hidden as long as the bus keeps up with the blocks.

    Args:
        smallest: tensors of fewer bytes stay on the device.
    """
    store = _Store(smallest)
    for block in blocks:
        block.forward = _Sent(block, block.forward, store)


def sent(tensor: Tensor) -> Any:
    """Inside a block that sends what it keeps to the host: a ticket for a tensor, for `returned`. Elsewhere itself."""
    run: _Run | None = getattr(_here, "run", None)
    return tensor if run is None else run.take(tensor)


def returned(ticket: Any) -> Any:
    """The tensor on the device that a ticket of `sent` stands for. Anything else passes through."""
    return ticket.tensor() if isinstance(ticket, _Ticket) else ticket


class _Piece:
    """One memory that waits on the host."""

    def __init__(self, run: "_Run", on_device: Tensor) -> None:
        self.run = run  # its stretch of host memory lasts as long as any of its pieces
        self.on_device: Tensor | None = on_device  # flat, bytes
        self.nbytes = on_device.numel()
        self.home: Tensor | None = None


class _Ticket:
    """A tensor as a view of a piece."""

    def __init__(self, piece: _Piece, tensor: Tensor) -> None:
        self._piece, self._dtype = piece, tensor.dtype
        self._view = tensor.size(), tensor.stride(), tensor.storage_offset()

    def tensor(self) -> Tensor:
        self._piece.run.arrive()
        flat = self._piece.on_device
        assert flat is not None
        return flat.view(self._dtype).as_strided(*self._view)


class _Run:
    """One run of one block."""

    def __init__(self, store: "_Store", stays: set[StorageWeakRef]) -> None:
        self._store, self._stays = store, stays
        self._pieces: dict[StorageWeakRef, weakref.ref[_Piece]] = {}
        self._event: torch.cuda.Event | None = None
        self.place = -1  # among the runs of a pass
        self.host: Tensor | None = None

    def take(self, tensor: Tensor) -> Any:
        storage = identity(tensor)
        if storage in self._stays or not self._store.moves(tensor):
            return tensor
        known = self._pieces.get(storage)
        piece = None if known is None else known()
        if piece is None:
            itemsize = tensor.element_size()
            numbers = tensor.untyped_storage().nbytes() // itemsize
            piece = _Piece(self, tensor.detach().as_strided((numbers,), (1,), 0).view(torch.uint8))
            self._pieces[storage] = weakref.ref(piece)
        return _Ticket(piece, tensor)

    def pieces(self) -> list[_Piece]:
        return [piece for known in self._pieces.values() if (piece := known()) is not None]

    def leave(self) -> None:
        """Begin to copy the pieces to the host. They stay on the device until `forget`."""
        pieces = self.pieces()
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + -(-piece.nbytes // ALIGNMENT) * ALIGNMENT)
        if not pieces:
            return
        self.host = self._store.stretch(ends[-1])
        weakref.finalize(self, self._store.give_back, self.host).atexit = False
        with self._store.aside() as stream:
            for piece, begin in zip(pieces, ends, strict=False):
                assert piece.on_device is not None
                piece.home = self.host[begin : begin + piece.nbytes]
                piece.home.copy_(piece.on_device, non_blocking=True)
        self._event = stream.record_event() if stream else None

    def forget(self) -> None:
        """The pieces have left: free their memory on the device."""
        self._wait()
        for piece in self.pieces():
            piece.on_device = None

    def bring(self) -> None:
        """Begin to copy the pieces back."""
        away = [piece for piece in self.pieces() if piece.on_device is None]
        for piece in away:
            assert piece.home is not None
            piece.on_device = torch.empty(piece.nbytes, dtype=torch.uint8, device=self._store.device)
        if not away:
            return
        with self._store.aside() as stream:
            for piece in away:
                assert piece.on_device is not None and piece.home is not None
                piece.on_device.copy_(piece.home, non_blocking=True)
                if stream:
                    piece.on_device.record_stream(stream)  # it may be dropped before anybody waits for the copy
        self._event = stream.record_event() if stream else None

    def arrive(self) -> None:
        """Have the pieces on the device, and the next run's on their way."""
        self._store.going_back(self)
        self.bring()
        self._wait()

    def _wait(self) -> None:
        if self._event is not None:
            torch.cuda.current_stream(self._store.device).wait_event(self._event)


class _Store:
    """Runs in their order, and the host memory that they take in turn."""

    def __init__(self, smallest: int) -> None:
        self.device = torch.device("cpu")
        self.results = set[StorageWeakRef]()  # of the block that ran last
        self._smallest = smallest
        self._stream: torch.cuda.Stream | None = None
        self._free: list[Tensor] = []
        self._runs: list[weakref.ref[_Run]] = []  # of this pass
        self._last: _Run | None = None
        self._order: list[int] = []  # in which runs went back in this pass
        self._expected: dict[int, list[int]] = {}  # number of runs in a pass -> the order in which they went back

    def moves(self, tensor: Tensor) -> bool:
        plain = type(tensor) in (Tensor, FakeTensor)  # no subclass: those know more than their bytes
        return plain and tensor.nbytes >= self._smallest and tensor.untyped_storage().nbytes() % 8 == 0

    def finish(self, run: _Run, device: torch.device) -> None:
        """The forward pass of a block is over."""
        if self._order:  # a new pass
            self._runs, self._order = [], []
        self.device = device
        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)
        run.leave()
        if self._last is not None:
            self._last.forget()
        run.place, self._last = len(self._runs), run
        self._runs.append(weakref.ref(run))

    def going_back(self, run: _Run) -> None:
        """A run is needed: the one that is needed after it is brought as well."""
        if self._order and self._order[-1] == run.place:
            return
        self._last = None
        self._order.append(run.place)
        number = len(self._runs)
        run.bring()
        expected = self._expected.get(number, [*reversed(range(number))])
        following = expected[expected.index(run.place) + 1 :] if run.place in expected else []
        if following and (after := self._runs[following[0]]()) is not None:
            after.bring()
        if sorted(self._order) == [*range(number)]:
            self._expected = {number: list(self._order)}

    def stretch(self, size: int) -> Tensor:
        """Host memory of at least so many bytes: the smallest that is free, or a new one in place of one too small."""
        fitting = [x for x in self._free if x.numel() >= size]
        if fitting:
            best = min(fitting, key=Tensor.numel)
            self._free = [x for x in self._free if x is not best]
            return best
        self._free = sorted(self._free, key=Tensor.numel)[1:]
        return host_empty((size,), torch.uint8)

    def give_back(self, stretch: Tensor) -> None:
        self._free.append(stretch)

    @contextmanager
    def aside(self) -> Iterator[torch.cuda.Stream | None]:
        """A context whose copies run beside the computation, after what is asked for so far."""
        if self._stream is None:
            yield None
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield self._stream


class _Sent:
    """The forward pass of a block that sends what it keeps to the host."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any], store: _Store) -> None:
        self._block, self._forward, self._store = block, forward, store

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        shared = {identity(x) for x in given if not x.requires_grad} - self._store.results
        run = _Run(self._store, shared | {identity(p) for p in self._block.parameters()})
        outer, _here.run = getattr(_here, "run", None), run
        try:
            with saved_tensors_hooks(run.take, returned):
                out = self._forward(*args, **kwargs)
        finally:
            _here.run = outer
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self._store.results = {identity(x) for x in results}
        self._store.finish(run, results[0].device)
        return out
