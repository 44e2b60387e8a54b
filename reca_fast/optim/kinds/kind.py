"""What an optimizer's rule is to the update that drives it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Now(NamedTuple):
    """What a rule is told of the step that it takes part in."""

    lr: float
    weight_decay: float  # of the parameters at hand
    step: int  # counted from 1, skipped steps included
    skip: Tensor  # 0-d fp32 on the device: 1 if the step is skipped, else 0


class Kind(Protocol):
    """A rule of an optimizer. It keeps nothing itself: all that it knows of the past lies in the states, which whoever
    calls it keeps, moves and saves.
    """

    @property
    def skips(self) -> bool:
        """Whether `step` leaves weights and states as they are, to the last bit, where `Now.skip` is 1. If not, it is
        called all the same, on copies, which are then dropped.
        """
        ...

    def new_states(self, parameter: Tensor, device: torch.device) -> dict[str, Tensor]:
        """The states of a parameter before the first update, by their names. A state is sharded over processes exactly
        as the parameter is, or has no dimension.

        Args:
            parameter: itself, whole or sharded (a DTensor), on any device.
            device: where the states are to be.
        """
        ...

    def step(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[dict[str, Tensor]], now: Now
    ) -> None:
        """Change weights and states in place.

        Args:
            weights: fp32, this process's parts.
            gradients: likewise; may be used up.
            states: of each weight, as `new_states` made them.
        """
        ...
