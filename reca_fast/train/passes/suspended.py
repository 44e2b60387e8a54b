"""A forward pass that stands still before each block, and whose graph is cut there.

A model computes its loss in one call, which runs the blocks somewhere inside. To let all packs of a step go through one
block before the next block begins, each pack's call runs in a thread of its own that waits before every block until it
is told to go on. One thread runs at a time, so nothing is computed in another order from run to run.

The graph of autograd is cut around each block: a block's inputs and outputs become leaves. So the backward pass can go
block by block over all packs, too, and what lies between two blocks (usually nothing) is bridged here.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_map

_here = threading.local()
"""`_here.run`: the Suspended whose thread this is."""


class _Cancelled(BaseException):
    """Ends the thread of a pack that nobody will let go on."""


class _Segment(NamedTuple):
    """One block's part of a pack's graph."""

    sources: list[Tensor]  # what came in with a gradient to be returned: leaves of the segment before, or a bridge
    inputs: list[Tensor]  # the leaves that stand for them inside
    outputs: list[Tensor]  # what came out, with the block's graph behind it
    leaves: list[Tensor]  # the leaves that stand for them outside


def suspend_at(blocks: Sequence[nn.Module], around: Callable[[int], Any]) -> None:
    """Make each block wait for its turn when a `Suspended` runs it. In any other call (sampling, evaluation) the block
    runs at once, inside the context `around(number)`.
    """
    for number, block in enumerate(blocks):
        block.forward = partial(_enter, number, block.forward, around)


def _enter(number: int, forward: Callable[..., Any], around: Callable[[int], Any], *args: Any, **kwargs: Any) -> Any:
    run: Suspended | None = getattr(_here, "run", None)
    if run is not None:
        return run.enter(number, partial(forward, **kwargs), args)
    with around(number):
        return forward(*args, **kwargs)


class Suspended:
    """One pack's forward pass.

    Args:
        compute: the whole forward pass, which calls every block once, in order, and returns task -> sum of losses.
        blocks: how many blocks there are.
    """

    def __init__(self, compute: Callable[[], dict[str, Tensor]], blocks: int) -> None:
        self.sums: dict[str, Tensor] = {}
        self._blocks, self._at = blocks, -1
        self._segments: list[_Segment] = []
        self._bridges: list[tuple[Tensor, Tensor]] = []  # tensors between two blocks, and gradients that reached them
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._cancelled = self._ended = False
        self._thread = ThreadPoolExecutor(1, "reca-pack")
        self._outcome = self._thread.submit(self._body, compute, _surroundings())

    def go_on(self, number: int) -> None:
        """Run up to the block `number`, the blocks before it included; past the last block, to the end.

        Raises:
            RuntimeError: the blocks are not called once each, in order.
            Whatever the forward pass raises.
        """
        self._go.release()
        self._back.acquire()
        if self._ended:
            self._outcome.result()
        if self._at != number:
            raise RuntimeError(
                f"the forward pass is at block {self._at} of {self._blocks} where block {number} was due; "
                "memory.order=layer needs a model that calls each of its blocks once, in order"
            )

    def cancel(self) -> None:
        """End the thread. Does nothing to one that has ended."""
        self._cancelled = True
        self._go.release()
        self._thread.shutdown()

    def backward_of_head(self, loss: Tensor) -> None:
        """The backward pass from the loss to the outputs of the last block. Call it once, before `backward_of`."""
        loss.backward(retain_graph=True)  # a tensor before the blocks may be read here
        self.sums = {task: part.detach() for task, part in self.sums.items()}

    def backward_of(self, number: int) -> None:
        """The backward pass of one block; the last block comes first."""
        sources, inputs, outputs, leaves = self._segments.pop()
        assert len(self._segments) == number, "blocks go backwards in their order"
        reached = [(out, leaf.grad) for out, leaf in zip(outputs, leaves, strict=True)]
        if self._bridges and leaves:
            tensors, gradients = zip(*self._bridges, strict=True)
            more = torch.autograd.grad(tensors, leaves, gradients, retain_graph=True, allow_unused=True)
            reached = [(out, _sum(a, b)) for (out, a), b in zip(reached, more, strict=True)]
        reached = [(out, gradient) for out, gradient in reached if gradient is not None]
        if reached:
            torch.autograd.backward([out for out, _ in reached], [gradient for _, gradient in reached])
        known = {id(leaf) for segment in self._segments for leaf in segment.leaves}
        for source, leaf in zip(sources, inputs, strict=True):
            if leaf.grad is None:
                continue
            if id(source) in known:
                source.grad = _sum(source.grad, leaf.grad)
            else:
                self._bridges.append((source, leaf.grad))

    def backward_of_stem(self) -> None:
        """The backward pass of what comes before the blocks, and between them. Call it last."""
        if self._bridges:
            tensors, gradients = zip(*self._bridges, strict=True)
            torch.autograd.backward(tensors, gradients)
        self._bridges = []

    def enter(self, number: int, block: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Called in the thread, in place of a block."""
        self._at = number
        self._back.release()
        self._go.acquire()
        if self._cancelled:
            raise _Cancelled
        sources: list[Tensor] = []
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        leaves: list[Tensor] = []
        result = block(*tree_map(partial(_cut, sources, inputs), args))
        result = tree_map(partial(_cut, outputs, leaves), result)
        self._segments.append(_Segment(sources, inputs, outputs, leaves))
        return result

    def _body(self, compute: Callable[[], dict[str, Tensor]], surroundings: Callable[[], Any]) -> None:
        self._go.acquire()
        try:
            if not self._cancelled:
                _here.run = self
                with surroundings():
                    self.sums = compute()
                self._at = self._blocks
        finally:
            self._ended = True
            self._back.release()


def _cut(outside: list[Tensor], inside: list[Tensor], value: Any) -> Any:
    """A leaf in place of a tensor that has a gradient to return; anything else as it is."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return value
    for known, leaf in zip(outside, inside, strict=True):
        if known is value:
            return leaf
    leaf = value.detach().requires_grad_()
    outside.append(value)
    inside.append(leaf)
    return leaf


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _surroundings() -> Callable[[], Any]:
    """What is in force in this thread and a new one lacks: the device, its stream, and torch's modes (those that count
    memory or run on fake tensors).
    """
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    cuda = (torch.cuda.current_device(), torch.cuda.current_stream()) if torch.cuda.is_initialized() else None

    @contextmanager
    def enter() -> Iterator[None]:
        with ExitStack() as stack:
            if cuda is not None:
                torch.cuda.set_device(cuda[0])
                stack.enter_context(torch.cuda.stream(cuda[1]))
            for mode in modes:
                stack.enter_context(mode)
            yield

    return enter
