"""From gradients to changed weights: what an update does whatever the optimizer is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reca_fast.config import OptimConfig

from .groups import Group, group_by_block
from .kinds import Kind, Now, Weight, open_kind
from .norm import GlobalNorm
from .parts import own_part
from .rounding import Rounding
from .schedule import learning_rate
from .states import HostEmpty, States, pageable

PORTION = 1 << 26
"""Numbers of a group that are updated together where copies of them are made for it. Every matrix of a 7B model has
fewer, or is a portion of its own.
"""


Part = tuple[str, nn.Parameter, Tensor]
"""Name of a parameter, itself, and this process's part of its gradient."""


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
    host_empty: HostEmpty = pageable,
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
        host_empty: makes an uninitialised tensor of a shape and a dtype in host memory, for `optim.states=host`.
        seed: of the draws that round bf16 weights.

    Raises:
        UserError: a library that the settings need is not installed, or they do not work on the device.
    """
    device = torch.device(device)
    groups, kind = group_by_block(trained, blocks, decays), open_kind(config, device)
    states = States(trained, groups, kind, device, host_empty if config.states == "host" else None)
    return Update(trained, groups, kind, states, config, total_steps, device=device, seed=seed)


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
        states: States,
        config: OptimConfig,
        total_steps: int,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        self.groups = tuple(groups)
        self.kind, self.states, self.config, self.total_steps = kind, states, config, total_steps
        self.device = device
        self._norm = GlobalNorm(trained)
        self._round = Rounding(seed, device)

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
        self._applied = finite.all()
        self._skip = (~self._applied).float()
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
            mine = [
                (name, parameter, own_part(gradient))
                for name, parameter, gradient, its in zip(
                    group.names, group.parameters, gradients, group.decays, strict=True
                )
                if gradient is not None and its == decays
            ]
            for portion in self._portions(mine):
                self._apply(portion, self.config.weight_decay if decays else 0.0)

    def _portions(self, parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
        """All at once where weights and states are changed in place, and otherwise in turn, so that few are copied."""
        in_place = self.kind.skips and not self.states.on_host
        if in_place and all(t.dtype == torch.float32 for _, *tensors in parts for t in tensors):
            yield parts
            return
        portion: list[Part] = []
        for part in parts:
            if portion and sum(gradient.numel() for *_, gradient in (*portion, part)) > PORTION:
                yield portion
                portion = []
            portion.append(part)
        yield portion

    def _apply(self, parts: Sequence[Part], weight_decay: float) -> None:
        here = [self._on_device(own_part(parameter)) for _, parameter, _ in parts]
        states = [self.states.take(name) for name, *_ in parts]
        changed = [self._to_change(kept.float(), kept) for kept in here]
        new_states = [{kind: self._to_change(state, state) for kind, state in its.items()} for its in states]
        gradients = [gradient.float() for *_, gradient in parts]
        if self._factor is not None and gradients:
            torch._foreach_mul_(gradients, self._factor)
        weights = list(map(Weight, changed, gradients, new_states, (parameter for _, parameter, _ in parts)))
        self.kind.step(weights, Now(self._lr, weight_decay, self._step, self._skip))
        del gradients, weights  # the memory of copies serves the rounding
        for (name, parameter, _), kept, new in zip(parts, here, changed, strict=True):
            if kept.dtype == torch.bfloat16:
                self._round(new, kept, self._applied, name=name, parameter=parameter, step=self._step)
            else:
                self._take_over(kept, new)
            if (home := own_part(parameter)).device != self.device:
                home.copy_(kept, non_blocking=True)
        for (name, *_), its, new_ones in zip(parts, states, new_states, strict=True):
            for kind, state in its.items():
                self._take_over(state, new_ones[kind])
            self.states.put_back(name, its)

    def _on_device(self, tensor: Tensor) -> Tensor:
        if tensor.device == self.device:
            return tensor
        return torch.empty_like(tensor, device=self.device).copy_(tensor, non_blocking=True)

    def _to_change(self, tensor: Tensor, kept: Tensor) -> Tensor:
        """What the rule changes: the tensor itself where that is a copy already, or where the rule skips by itself."""
        return tensor.clone() if tensor is kept and not self.kind.skips else tensor

    def _take_over(self, kept: Tensor, new: Tensor) -> None:
        """Keep new numbers, if the step is not skipped."""
        if kept is not new:
            torch.where(self._applied, new, kept, out=kept)

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
        return self.states.by_kind()
