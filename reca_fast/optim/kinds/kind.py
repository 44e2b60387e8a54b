"""What an optimizer's rule is to the update that drives it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from ..parts import New


class Now(NamedTuple):
    """What a rule is told of the step that it takes part in."""

    lr: float
    weight_decay: float  # of the parameters at hand
    step: int  # counted from 1, skipped steps included
    skip: Tensor  # 0-d fp32 on the device: 1 if the step is skipped, else 0


@dataclass
class Weight:
    """A trained weight while it is updated: all tensors are this process's parts, on the device of the update."""

    values: Tensor  # fp32, to be changed in place
    gradient: Tensor  # fp32, may be used up
    states: dict[str, Tensor]  # as `new_states` made them, to be changed in place
    parameter: Tensor  # whose values these are: the shape of the whole, and which processes hold the other parts


class Kind(Protocol):
    """A rule of an optimizer. All that it knows of the past lies in the states, which whoever calls it keeps, moves and
    saves.
    """

    @property
    def skips(self) -> bool:
        """Whether `step` leaves weights and states as they are, to the last bit, where `Now.skip` is 1. If not, it is
        called all the same, on copies, which are then dropped.
        """
        ...

    def new_states(self, parameter: Tensor, new: New) -> dict[str, Tensor]:
        """The states of a parameter before the first update, by their names, of any dtype. A state is shared out over
        the processes as the parameter is (`share_like`), or every process has the same.

        Args:
            parameter: itself, whole or sharded (a DTensor), on any device.
            new: makes the tensors, there where states are kept.
        """
        ...

    def step(self, weights: Sequence[Weight], now: Now) -> None:
        """Change weights and their states in place. On several processes, all call it with the same parameters."""
        ...
