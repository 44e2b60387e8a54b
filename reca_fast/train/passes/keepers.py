"""Where complete gradients wait until the norm of all of them is known."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from reca_fast.memory import Layout, Ring


class Keeper(Protocol):
    """Keeps the gradients of each group, in the order of its parameters."""

    def keep(self, number: int, gradients: Sequence[Tensor]) -> None:
        """Take the gradients of a group."""

    def kept(self, number: int, *, then: int) -> AbstractContextManager[Sequence[Tensor]]:
        """A context that gives them back, on the device, for the last time.

        Args:
            then: the group that will be asked for next.
        """


class OnDevice:
    """Gradients stay where they are: as much memory as the trained weights take."""

    def __init__(self) -> None:
        self._kept: dict[int, Sequence[Tensor]] = {}

    def keep(self, number: int, gradients: Sequence[Tensor]) -> None:
        self._kept[number] = gradients

    @contextmanager
    def kept(self, number: int, *, then: int) -> Iterator[Sequence[Tensor]]:
        yield self._kept.pop(number)


class OnHost:
    """Gradients of blocks wait in host memory, in the dtypes of their weights, and come back two blocks at a time.
    Those of the last group, of the weights outside of blocks, stay on the device.

    Args:
        groups: the parameters of each block, then the others.
        device: that computes.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], device: torch.device) -> None:
        *blocks, _ = groups
        self._ring = Ring([[Layout(p.shape, p.dtype) for p in block] for block in blocks], device)
        self._others, self._last = OnDevice(), len(blocks)

    def keep(self, number: int, gradients: Sequence[Tensor]) -> None:
        if number == self._last:
            self._others.keep(number, gradients)
        else:
            self._ring.send(number, gradients)

    @contextmanager
    def kept(self, number: int, *, then: int) -> Iterator[Sequence[Tensor]]:
        if number == self._last:
            with self._others.kept(number, then=then) as gradients:
                yield gradients
        else:
            with self._ring.use(number, then=then) as gradients:
                yield gradients
