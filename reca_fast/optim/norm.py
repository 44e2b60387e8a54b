"""The norm of all gradients together, measured group by group."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .parts import own_part, sharers


class GlobalNorm:
    """The global norm of the gradients: the norm of the norms of every parameter's, in the order of the parameters,
    whatever the order in which they were measured. Nothing here waits for the device.

    Args:
        trained: the trained parameters by their names in the model. Either all of them are sharded over the processes,
            or none is.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter]) -> None:
        self._norms: dict[str, Tensor | None] = dict.fromkeys(trained)
        self._sharers = sharers(next(iter(trained.values()))) if trained else []
        alike = all(len(sharers(parameter)) == len(self._sharers) for parameter in trained.values())
        assert alike, "either all parameters are sharded, over the same processes, or none is"

    def measure(self, names: Sequence[str], gradients: Sequence[Tensor | None]) -> None:
        """Take the norms of some parameters' gradients, in fp32.

        Args:
            names: of the parameters.
            gradients: theirs, of any floating dtype; None where a parameter has none.
        """
        there = [
            (name, own_part(gradient)) for name, gradient in zip(names, gradients, strict=True) if gradient is not None
        ]
        if there:
            norms = torch._foreach_norm([gradient for _, gradient in there], 2, torch.float32)
            self._norms.update(zip((name for name, _ in there), norms, strict=True))

    def total(self, device: torch.device) -> Tensor:
        """The norm of all gradients measured since the last call, 0-d fp32 on the device, the same on every process."""
        norms = [norm for norm in self._norms.values() if norm is not None or self._sharers]
        self._norms = dict.fromkeys(self._norms)
        if not norms:
            return torch.zeros((), device=device)
        nothing = torch.zeros((), device=device)
        each = torch.stack([nothing if norm is None else norm for norm in norms])
        if self._sharers:
            squares = each.double().square()  # which fp32 may not hold
            for group in self._sharers:
                dist.all_reduce(squares, group=group)
            each = squares.sqrt().float()
        norm: Tensor = torch.linalg.vector_norm(each)
        return norm
