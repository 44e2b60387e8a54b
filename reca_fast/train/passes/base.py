"""What a step asks of the passes over its packs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from reca_fast.optim import Finished

Weigh = Callable[[Mapping[str, Tensor]], Tensor]
"""From the sums of one pack's losses by task to the number that its gradient is taken of."""


def add_sums(sums: dict[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    """Add one pack's sums of losses to those of the packs before it, task by task, without their graphs."""
    for task, part in parts.items():
        sums[task] = sums[task] + part.detach() if task in sums else part.detach()


class Passes(Protocol):
    """Runs the packs of this process through the model, forward and backward, and has the weights updated."""

    def gradients(self, batches: Sequence[Any], weigh: Weigh) -> dict[str, Tensor]:
        """The forward and backward passes of the packs.

        Args:
            batches: of the packs, on the host or on the device.
            weigh: gives the number to differentiate, of each pack.

        Returns:
            Task -> sum of its losses over these packs, 0-d, on the device.
        """
        ...

    def update(self, losses: Tensor) -> Finished:
        """Change the weights by the gradients of the packs that `gradients` ran last.

        Args:
            losses: of all processes, on the device; the update is skipped if one of them, or the gradient norm, is inf
                or NaN.
        """
        ...

    def settle(self) -> None:
        """Wait until every weight is where the host may read it. To be called before weights are saved."""
        ...
