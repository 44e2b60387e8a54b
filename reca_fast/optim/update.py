"""From gradients to changed weights: what every kind of update does, and AdamW, the first kind."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reca_fast.config import OptimConfig

from .groups import parameter_groups
from .schedule import learning_rate

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of every trained parameter: first and second moment, and the number of updates made."""


class Finished(NamedTuple):
    """What an update leaves behind. Its tensors stay on the device until somebody logs them."""

    lr: float
    grad_norm: Tensor  # 0-d, before clipping
    finite: Tensor  # bool [losses + 1]: of every loss, then of the gradient norm

    @property
    def applied(self) -> Tensor:
        """0-d bool: whether the update was made. It is made when everything is finite, otherwise skipped."""
        return self.finite.all()


class Update(Protocol):
    """Changes the trained weights once per step. A step calls `begin`, runs the backward pass of every pack, whose
    gradients add up, and calls `finish`. Neither waits for the device.
    """

    def begin(self, step: int) -> None:
        """Get ready for the backward passes of a step.

        Args:
            step: how many steps the run took before this one.
        """

    def finish(self, losses: Tensor) -> Finished:
        """Change the weights and clear the gradients. If a loss or the gradient norm is inf or NaN, the update is
        skipped: weights and state stay as they are to the last bit.

        Args:
            losses: [losses], on the device, the same on every process. Only whether they are finite matters.
        """

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of the update besides the weights: kind -> name of the parameter -> tensor. The
        tensors are the update's own, to be read, or to be filled in place. The kinds and names never change in a run.
        """


class AdamWUpdate:
    """Gradients clipped to a global norm, then fused AdamW with a scheduled learning rate.

    Args:
        trained: the trained parameters by their names in the model.
        decays: whether the parameter of that name has weight decay (see `parameter_groups`).
        config: of the optimizer.
        total_steps: of the whole run, which the schedule needs.
    """

    def __init__(
        self, trained: Mapping[str, nn.Parameter], decays: Callable[[str], bool], config: OptimConfig, total_steps: int
    ) -> None:
        self.trained, self.config, self.total_steps = dict(trained), config, total_steps
        groups = parameter_groups(trained, decays, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        # Moments from the start: a run out of memory says so at once, and a checkpoint always has the same entries.
        for p in trained.values():
            step = torch.zeros((), device=p.device)
            moments = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.optimizer.state[p] = moments

    def begin(self, step: int) -> None:
        self.lr = learning_rate(self.config, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def finish(self, losses: Tensor) -> Finished:
        grad_norm = clip_gradients(self.trained.values(), self.config.max_grad_norm)
        finite = torch.isfinite(torch.cat((losses, grad_norm.reshape(1))))
        # torch's own way of skipping a fused step without asking the host; its GradScaler sets the same attribute.
        self.optimizer.found_inf = (~finite.all()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Finished(self.lr, grad_norm, finite)

    def state(self) -> dict[str, dict[str, Tensor]]:
        of = self.optimizer.state
        return {kind: {name: of[p][kind] for name, p in self.trained.items()} for kind in MOMENTS}


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients down together, so that their global norm is at most `max_norm`; 0 leaves them as they are.

    Returns:
        The norm before, 0-d on the device, over all processes that share the parameters. It is inf or NaN when a
        gradient is.
    """
    parameters = list(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
