"""From gradients to changed weights: what an update does whatever the optimizer is."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reca_fast.config import OptimConfig

from .groups import Group, group_by_block
from .kinds import AdamW, Kind, Now
from .norm import GlobalNorm
from .parts import own_part
from .rounding import Rounding
from .schedule import learning_rate


class Finished(NamedTuple):
    """What an update leaves behind. Its tensors stay on the device until somebody logs them."""

    lr: float
    grad_norm: Tensor  # 0-d, before clipping
    finite: Tensor  # bool [losses + 1]: of every loss, then of the gradient norm

    @property
    def applied(self) -> Tensor:
        """0-d bool: whether the update was made. It is made when everything is finite, otherwise skipped."""
        return self.finite.all()


def open_update(
    trained: Mapping[str, nn.Parameter],
    blocks: Sequence[nn.Module],
    decays: Callable[[str], bool],
    config: OptimConfig,
    total_steps: int,
    *,
    device: torch.device | str,
    seed: int = 0,
) -> "Update":
    """The update that the settings ask for.

    Args:
        trained: the trained parameters by their names in the model, whole or sharded (FSDP2), in fp32 or bf16.
        blocks: of the model, in the order in which they run. The parameters of each are one group.
        decays: whether weight decay acts on the parameter of that name.
        config: of the optimizer.
        total_steps: of the whole run, which the schedule of the learning rate needs.
        device: where updates are computed and states lie. Parameters may lie elsewhere while no group of theirs is
            updated.
        seed: of the draws that round bf16 weights.
    """
    groups = group_by_block(trained, blocks, decays)
    return Update(trained, groups, AdamW(config), config, total_steps, device=torch.device(device), seed=seed)


class Update:
    """Changes the trained weights once per step, group by group. Nothing in it waits for the device.

    A step calls `begin`, runs the backward passes, and then either `finish`, or its parts: `measure` for every group as
    soon as its gradients are complete, `decide` when all are measured, `apply` for every group. Between `measure` and
    `apply` the gradients may be anywhere; both are given them on the device.

    If a loss or the gradient norm is inf or NaN, the update is skipped: `apply` leaves weights and states as they are,
    to the last bit. The device decides that.

    Weights in bf16 are widened to fp32 while their group is updated, and rounded stochastically, so that small updates
    are not lost. The draws depend on the seed, the step and the parameter alone: a resumed run draws the same.

    Attributes:
        groups: one for each block of the model, then one for all other parameters; any of them may be empty.
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Parameter],
        groups: Sequence[Group],
        kind: Kind,
        config: OptimConfig,
        total_steps: int,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        self.groups = tuple(groups)
        self.kind, self.config, self.total_steps = kind, config, total_steps
        self.device = device
        self._order = tuple(trained)
        self._norm = GlobalNorm(trained)
        self._round = Rounding(seed, device)
        # States from the start: a run out of memory says so at once, and a checkpoint always has the same entries.
        self._states = {name: kind.new_states(parameter, device) for name, parameter in trained.items()}
        self._own_states = {name: {k: own_part(t) for k, t in its.items()} for name, its in self._states.items()}

    def begin(self, step: int) -> None:
        """Get ready for the backward passes of a step.

        Args:
            step: how many steps the run took before this one.
        """
        self._step, self._lr = step + 1, learning_rate(self.config, step, self.total_steps)

    def measure(self, number: int, gradients: Sequence[Tensor | None]) -> None:
        """Count a group's gradients into the global norm.

        Args:
            number: of the group.
            gradients: of its parameters, complete, in fp32 or bf16, on the device, sharded like the parameters or this
                process's parts. None for a parameter that has none.
        """
        self._norm.measure(self.groups[number].names, gradients)

    def decide(self, losses: Tensor) -> Finished:
        """Whether the update is made, and by what factor the gradients are scaled down. All groups are measured.

        Args:
            losses: [losses], on the device, the same on every process. Only whether they are finite matters.
        """
        norm = self._norm.total(self.device)
        finite = torch.isfinite(torch.cat((losses, norm.reshape(1))))
        self._skip = (~finite.all()).float()
        largest = self.config.max_grad_norm
        self._factor = (largest / (norm + 1e-6)).clamp(max=1.0) if largest > 0 else None
        return Finished(self._lr, norm, finite)

    @torch.no_grad()
    def apply(self, number: int, gradients: Sequence[Tensor | None]) -> None:
        """Update a group's weights, where they are now, once per step, in any order of the groups.

        Args:
            number: of the group.
            gradients: as `measure` was given them. They may be used up.
        """
        group = self.groups[number]
        for decays in (True, False):
            mine = {
                i: own_part(gradient)
                for i, gradient in enumerate(gradients)
                if gradient is not None and group.decays[i] == decays
            }
            if mine:
                self._apply(group, list(mine), list(mine.values()), self.config.weight_decay if decays else 0.0)

    def _apply(self, group: Group, at: Sequence[int], gradients: list[Tensor], weight_decay: float) -> None:
        kept = [own_part(group.parameters[i]) for i in at]
        weights = [weight.float() for weight in kept]  # itself when it is fp32
        gradients = [gradient.float() for gradient in gradients]
        if self._factor is not None:
            torch._foreach_mul_(gradients, self._factor)
        states = [self._own_states[group.names[i]] for i in at]
        self.kind.step(weights, gradients, states, Now(self._lr, weight_decay, self._step, self._skip))
        for i, weight, new in zip(at, kept, weights, strict=True):
            if weight is not new:  # where the step is skipped, this rounds what bf16 holds: nothing changes
                weight.copy_(self._round(new, group.names[i], group.parameters[i], self._step))

    def finish(self, losses: Tensor) -> Finished:
        """Update all weights by the gradients that lie in their `.grad`, and clear those.

        Args:
            losses: [losses], on the device, the same on every process. Only whether they are finite matters.
        """
        for number, group in enumerate(self.groups):
            self.measure(number, [parameter.grad for parameter in group.parameters])
        finished = self.decide(losses)
        for number, group in enumerate(self.groups):
            self.apply(number, [parameter.grad for parameter in group.parameters])
            for parameter in group.parameters:
                parameter.grad = None
        return finished

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of the update besides the weights: kind -> name of the parameter -> tensor. The
        tensors are the update's own, to be read, or to be filled in place. The kinds and names never change in a run.
        """
        kinds: dict[str, dict[str, Tensor]] = {}
        for name in self._order:
            for kind, tensor in self._states[name].items():
                kinds.setdefault(kind, {})[name] = tensor
        return kinds
