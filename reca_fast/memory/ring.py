"""Tensors that live in host memory and visit the device one block at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .host import host_empty, pin

ALIGNMENT = 256
"""Bytes at a multiple of which each tensor begins, as the device's own allocator aligns its tensors."""
SLOTS = 2
"""Blocks on the device at once: one that computes, and one that is on its way."""


class Layout(NamedTuple):
    """Shape and dtype of a tensor that lives on the host."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class Ring:
    """One arena in host memory with a stretch for each block, and two slots on the device that blocks take in turn.

    Copies run on a stream of their own, in the order in which they are asked for, so that the next block arrives while
    this one computes.

    Args:
        blocks: for each block, the tensors that live on the host; a block may have none.
        device: that computes.
        pinned: False leaves it to the caller to call `pin` once the homes are filled.
    """

    def __init__(self, blocks: Sequence[Sequence[Layout]], device: torch.device, *, pinned: bool = True) -> None:
        self._layouts = blocks
        sizes = [sum(map(_stride, tensors)) for tensors in blocks]
        self._arena = host_empty((sum(sizes),), torch.uint8, pinned=pinned)
        self._homes = self._arena.split(sizes)
        slots = SLOTS if any(sizes) else 0
        self._slots = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(slots)]
        self._held: list[int | None] = [None] * slots  # the block in each slot, or on its way there
        self._turn = 0  # the slot that is filled next
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and slots else None
        self._arrived = [torch.cuda.Event() for _ in self._slots] if self._stream else []
        self._left = [torch.cuda.Event() for _ in self._slots] if self._stream else []
        for event in self._left:  # what had the slots' memory before may still be read
            event.record(torch.cuda.current_stream(device))
        self._leaving: list[Tensor] = []  # what was sent last

    def pin(self) -> None:
        """Pin the arena, see `reca_fast.memory.host.pin`."""
        pin(self._arena)

    def home(self, number: int) -> list[Tensor]:
        """A block's tensors on the host."""
        return _views(self._homes[number], self._layouts[number])

    def bring(self, number: int) -> None:
        """Begin to copy a block to the device, unless it is there or on its way. It takes the slot of the block that
        was brought before the last one.
        """
        if not 0 <= number < len(self._homes) or not self._layouts[number] or number in self._held:
            return
        slot, self._turn = self._turn, (self._turn + 1) % SLOTS
        self._held[slot] = number
        home = self._homes[number]
        if self._stream is None:
            self._slots[slot][: home.numel()].copy_(home)
            return
        self._stream.wait_event(self._left[slot])
        with torch.cuda.stream(self._stream):
            self._slots[slot][: home.numel()].copy_(home, non_blocking=True)
            self._arrived[slot].record()

    @contextmanager
    def use(self, number: int, *, then: int = -1, changed: bool = False) -> Iterator[list[Tensor]]:
        """A context in which a block's tensors are on the device; gives them there.

        Args:
            then: the block that will be used next, whose copy begins now; -1 for none.
            changed: the context changes the tensors, and the new values go home after it.
        """
        self.bring(number)
        self._let_go()
        if number not in self._held:  # a block without tensors here
            self.bring(then)
            yield []
            return
        slot = self._held.index(number)
        self._turn = (slot + 1) % SLOTS
        if self._stream:
            torch.cuda.current_stream(self._device).wait_event(self._arrived[slot])
        self.bring(then)
        yield _views(self._slots[slot], self._layouts[number])
        if self._stream:
            self._left[slot].record(torch.cuda.current_stream(self._device))
        if changed:
            self._copy_home([self._slots[slot][: self._homes[number].numel()]], [self._homes[number]])

    def send(self, number: int, tensors: Sequence[Tensor]) -> None:
        """Copy tensors from the device to a block's stretch, rounded to the dtypes there. What is copied stays on the
        device until the next block is sent or used.
        """
        if number in self._held:
            self._held[self._held.index(number)] = None  # what the slot holds is old now
        self._let_go()
        homes = self.home(number)
        self._leaving = [tensor.to(home.dtype) for tensor, home in zip(tensors, homes, strict=True)]
        self._copy_home(self._leaving, homes)

    def _let_go(self) -> None:
        """Free what was sent last. The device waits for its copy before that memory is used again. With `record_stream`
        the host would have to see the end of the copy, and since it runs ahead of the device, all blocks' gradients
        would take memory at once.
        """
        if self._stream and self._leaving:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._leaving = []

    def settle(self) -> None:
        """Wait until everything that changed is at home, before the host reads it."""
        if self._stream:
            self._stream.synchronize()

    def _copy_home(self, tensors: Sequence[Tensor], homes: Sequence[Tensor]) -> None:
        if self._stream is None:
            for tensor, home in zip(tensors, homes, strict=True):
                home.copy_(tensor)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for tensor, home in zip(tensors, homes, strict=True):
                home.copy_(tensor, non_blocking=True)


class HostWeights:
    """Parameters of blocks that live in host memory.

    Between uses, a parameter's data is its stretch of the arena, so whoever reads or saves it finds it there. In use,
    it is on the device.

    Args:
        blocks: for each block, the parameters that live on the host. They are on the host, with their values.
        device: that computes.
    """

    def __init__(self, blocks: Sequence[Sequence[Tensor]], device: torch.device) -> None:
        self._blocks = blocks
        self._ring = Ring([[Layout(p.shape, p.dtype) for p in block] for block in blocks], device, pinned=False)
        for number, block in enumerate(blocks):
            for parameter, home in zip(block, self._ring.home(number), strict=True):
                home.copy_(parameter.detach())
                parameter.data = home  # frees what it had: the whole is never there twice
        self._ring.pin()

    def bring(self, number: int) -> None:
        """Begin to copy a block's parameters to the device, see `Ring.bring`."""
        self._ring.bring(number)

    @contextmanager
    def use(self, number: int, *, then: int = -1, changed: bool = False) -> Iterator[None]:
        """A context in which a block's parameters are on the device. The arguments are those of `Ring.use`."""
        with self._ring.use(number, then=then, changed=changed) as there:
            for parameter, data in zip(self._blocks[number], there, strict=True):
                parameter.data = data
            try:
                yield
            finally:
                for parameter, home in zip(self._blocks[number], self._ring.home(number), strict=True):
                    parameter.data = home

    def settle(self) -> None:
        """Wait until everything that changed is at home, before the host reads it."""
        self._ring.settle()


def swapped(blocks: int, share: float) -> set[int]:
    """Which blocks' trained weights live in host memory: `share` of all, spread evenly so that each has the time of
    those that stay to arrive in.
    """
    count = round(blocks * share)
    return {(2 * number + 1) * blocks // (2 * count) for number in range(count)}


def visit(blocks: Sequence[nn.Module], weights: HostWeights) -> None:
    """Let every call of a block bring the block's weights to the device, and those of the block after it on their way.
    Without gradients only: a backward pass would find the weights of another block.
    """

    def call(number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with weights.use(number, then=(number + 1) % len(blocks)):
            return forward(*args, **kwargs)

    for number, block in enumerate(blocks):
        block.forward = partial(call, number, block.forward)


def on_host(blocks: Sequence[nn.Module], *, trained: bool) -> list[list[Tensor]]:
    """The parameters of each block that lie in host memory: the trained ones, or the frozen ones."""
    return [[p for p in block.parameters() if p.requires_grad == trained] for block in blocks]


def _stride(layout: Layout) -> int:
    return -(-layout.nbytes // ALIGNMENT) * ALIGNMENT


def _views(stretch: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
    """Tensors in a stretch of bytes, one behind another."""
    views, start = [], 0
    for layout in layouts:
        views.append(stretch[start : start + layout.nbytes].view(layout.dtype).view(layout.shape))
        start += _stride(layout)
    return views
