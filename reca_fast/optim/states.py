"""Where the states of an optimizer lie, and how they come to an update and go back."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from .groups import Group
from .kinds import Kind
from .parts import New, own_part

HostEmpty = Callable[[Sequence[int], torch.dtype], Tensor]
"""Makes an uninitialised tensor of a shape and a dtype in host memory."""
ALIGNED = 64
"""Bytes of which the place of a tensor in an arena is a multiple."""


class States:
    """The states of all parameters. Each lies on the device, or in host memory and comes to the device for its
    parameter's update alone.

    Args:
        trained: the trained parameters by their names in the model.
        groups: of them; the states of a group lie together.
        kind: whose states they are.
        device: of the updates.
        host_empty: makes the host memory for them, or None to have them on the device. States without a dimension are
            there in any case.
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Parameter],
        groups: Sequence[Group],
        kind: Kind,
        device: torch.device,
        host_empty: HostEmpty | None = None,
    ) -> None:
        self.on_host, self._device = host_empty is not None, device
        # From the start: a run out of memory says so at once, and a checkpoint always has the same entries.
        made: dict[str, dict[str, Tensor]] = {}
        for group in groups:
            new = _arena(kind, group, device, host_empty) if host_empty is not None else partial(_zeros, device)
            made |= {name: kind.new_states(p, new) for name, p in zip(group.names, group.parameters, strict=True)}
        self._whole = {name: made[name] for name in trained}
        self._own = {name: {k: own_part(t) for k, t in its.items()} for name, its in self._whole.items()}

    def take(self, name: str) -> dict[str, Tensor]:
        """The states of a parameter on the device: themselves, or copies of those on the host."""
        return {kind: self._here(state) for kind, state in self._own[name].items()}

    def _here(self, state: Tensor) -> Tensor:
        if not self.on_host or state.ndim == 0:
            return state
        return torch.empty_like(state, device=self._device).copy_(state, non_blocking=True)

    def put_back(self, name: str, states: dict[str, Tensor]) -> None:
        """Keep what `take` gave, as it is now."""
        for kind, state in self._own[name].items():
            if states[kind] is not state:
                state.copy_(states[kind], non_blocking=True)

    def by_kind(self) -> dict[str, dict[str, Tensor]]:
        """Kind of state -> name of the parameter -> the state itself, to be read or filled in place; whole, or a
        DTensor. Waits for copies that are under way.
        """
        if self.on_host and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        kinds: dict[str, dict[str, Tensor]] = {}
        for name, states in self._whole.items():
            for kind, state in states.items():
                kinds.setdefault(kind, {})[name] = state
        return kinds


def pageable(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in host memory of the plain kind."""
    return torch.empty(tuple(shape), dtype=dtype, device="cpu")


def _zeros(device: torch.device, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.zeros(tuple(shape), dtype=dtype, device=device)


def _arena(kind: Kind, group: Group, device: torch.device, host_empty: HostEmpty) -> New:
    """What makes the states of a group in one piece of host memory: many small ones would be rounded up each."""
    size = 0

    def count(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        nonlocal size
        if shape:
            size += -(-prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED
        return torch.empty(tuple(shape), dtype=dtype, device="meta")

    for parameter in group.parameters:
        kind.new_states(parameter, count)
    arena = host_empty((size,), torch.uint8).zero_()
    used = 0

    def cut(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        nonlocal used
        if not shape:
            return _zeros(device, shape, dtype)
        begin, length = used, prod(shape) * dtype.itemsize
        used += -(-length // ALIGNED) * ALIGNED
        return arena[begin : begin + length].view(dtype).view(tuple(shape))

    return cut
