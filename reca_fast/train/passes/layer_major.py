"""All packs of a step through one block before the next block begins, forward and backward.

What comes to a block from elsewhere (weights in host memory, frozen or trained) comes once for all packs. A block's
gradient is complete as soon as the backward pass has left it, so it need not wait on the device for the others.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reca_fast.memory import HostWeights
from reca_fast.models import Model
from reca_fast.optim import Finished, Update

from .base import Weigh, add_sums
from .keepers import Keeper
from .suspended import Suspended, suspend_at

Complete = Callable[[int, list[Tensor]], None]
"""Is called with the number of a group and its gradients as soon as these are complete."""


class LayerMajor:
    """The order block by block (see `Passes`).

    Args:
        model: each of its forward passes calls all of its blocks once, in order.
        update: its groups are those of `model.blocks()` in order, and one more for the other weights.
        device: that computes.
        keeper: where gradients wait until the norm of all of them is known. None computes them twice instead: the first
            backward pass measures the norm, the second one has each group updated as soon as its gradient is complete.
        frozen: the blocks' frozen weights, where these live in host memory.
        trained: the blocks' trained weights, as far as these live in host memory.
        sum_over: sums a tensor over all processes, in place. Each of them holds all weights.
    """

    def __init__(
        self,
        model: Model,
        update: Update,
        device: torch.device,
        keeper: Keeper | None,
        *,
        frozen: HostWeights | None = None,
        trained: HostWeights | None = None,
        sum_over: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self._model, self._update, self._device, self._keeper = model, update, device, keeper
        self._visitors = [weights for weights in (frozen, trained) if weights is not None]
        self._trained, self._sum_over = trained, sum_over
        self._blocks: Sequence[nn.Module] = model.blocks()
        self._batches: Sequence[Any] = ()
        suspend_at(self._blocks, self._on_device)

    def gradients(self, batches: Sequence[Any], weigh: Weigh) -> dict[str, Tensor]:
        self._batches = [self._model.encode(batch.to(self._device)) for batch in batches]
        self._weigh = weigh
        return self._run(self._measure)

    def update(self, losses: Tensor) -> Finished:
        finished = self._update.decide(losses)
        if self._keeper is None:
            self._run(self._apply)
        else:
            for number in range(len(self._update.groups)):
                with self._keeper.kept(number, then=number + 1) as gradients:
                    self._apply(number, gradients)
        self._batches = ()
        return finished

    def settle(self) -> None:
        if self._trained is not None:
            self._trained.settle()

    def _measure(self, number: int, gradients: list[Tensor]) -> None:
        self._update.measure(number, gradients)
        if self._keeper is not None:
            self._keeper.keep(number, gradients)

    def _apply(self, number: int, gradients: Sequence[Tensor]) -> None:
        if self._trained is None or number == len(self._blocks):
            self._update.apply(number, gradients)
            return
        following = number + 1 if self._keeper is not None else number - 1
        with self._trained.use(number, then=following, changed=True):
            self._update.apply(number, gradients)

    def _run(self, complete: Complete) -> dict[str, Tensor]:
        """Forward and backward passes over all packs."""
        packs: list[Suspended] = []
        try:
            for batch in self._batches:
                packs.append(Suspended(partial(self._model.loss_sums, batch), len(self._blocks)))
            self._forward(packs)
            sums: dict[str, Tensor] = {}
            for pack in packs:
                add_sums(sums, pack.sums)
                pack.backward_of_head(self._weigh(pack.sums))
            self._backward(packs, complete)
            return sums
        finally:
            for pack in packs:
                pack.cancel()

    def _forward(self, packs: Sequence[Suspended]) -> None:
        for weights in self._visitors:
            weights.bring(0)
        for pack in packs:
            pack.go_on(0)
        for number in range(len(self._blocks)):
            with self._on_device(number, then=number + 1):
                for pack in packs:
                    pack.go_on(number + 1)

    def _backward(self, packs: Sequence[Suspended], complete: Complete) -> None:
        *blocks, others = [group.parameters for group in self._update.groups]
        for number in reversed(range(len(blocks))):
            gradients: list[Tensor] = []
            with self._on_device(number, then=number - 1):
                for pack in packs:
                    pack.backward_of(number)
                    gradients = _collect(blocks[number], gradients, alone=len(packs) == 1)
            complete(number, self._of_all_processes(gradients))
        for pack in packs:
            pack.backward_of_stem()
        complete(len(blocks), self._of_all_processes(_collect(others, [], alone=True)))

    def _of_all_processes(self, gradients: list[Tensor]) -> list[Tensor]:
        return [self._sum_over(gradient) for gradient in gradients]

    @contextmanager
    def _on_device(self, number: int, *, then: int = -1) -> Iterator[None]:
        """A context in which all weights of a block are on the device; those of the block `then` are on their way."""
        with ExitStack() as stack:
            for weights in self._visitors:
                stack.enter_context(weights.use(number, then=then))
            yield


def _collect(parameters: Sequence[nn.Parameter], sums: list[Tensor], *, alone: bool) -> list[Tensor]:
    """The parameters' gradients, added to `sums` if that has any; the parameters have none afterwards.

    Args:
        alone: no other pack's gradients are added to these. Otherwise the sums are fp32, since a bf16 parameter's own
            gradient has no room for them.
    """
    collected = []
    for number, parameter in enumerate(parameters):
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "every trained weight has a gradient in every pack"
        collected.append(sums[number].add_(gradient) if sums else gradient if alone else gradient.float())
    return collected
