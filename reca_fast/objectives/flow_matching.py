"""Flow matching with logit-normal timesteps, the loss of the tasks reca and t2i in models that predict velocities."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reca_fast.kernels import flow_matching_loss


def shifted_logit_normal(normal: Tensor, shift: float) -> Tensor:
    """Timesteps in (0, 1) from standard normal numbers n: t = sigmoid(n), then shift * t / (1 + (shift - 1) * t).

    Args:
        normal: n, of any shape, which the result has too.
        shift: above 1 it moves the timesteps towards 1, which is noise; 1 changes nothing.
    """
    t = torch.sigmoid(normal)
    return shift * t / (1 + (shift - 1) * t)


def flow_loss_by_task(
    velocity: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    target_index: Tensor,
    tasks: Sequence[str],
    *,
    seed: int | None = None,
    noise: Tensor | None = None,
) -> dict[str, Tensor]:
    """For each task, the sum of the losses of its latent tokens.

    The loss of a token is the mean over its C numbers of (velocity - (noise - latents))^2. If all targets serve one
    task, which is usual, the pass that computes the sum forms the gradient too; otherwise that takes a second pass.

    Args:
        velocity: [G, C], as predicted.
        latents: [G, C], without noise.
        timesteps: [M], the time of each target.
        target_index: int64 [G], number of the target that each token belongs to.
        tasks: [M], the task of each target.
        seed, noise: exactly one of the two: the one from which `flow_interpolate` made the noisy latents. noise is
            [G, C].

    Returns:
        Task -> 0-d sum in fp32 or wider, for the tasks that occur.
    """
    different, token_times = list(dict.fromkeys(tasks)), timesteps[target_index]
    if len(different) == 1:
        total = flow_matching_loss(velocity, latents, token_times, seed=seed, noise=noise, reduction="sum")
        return {different[0]: total}
    per_token = flow_matching_loss(velocity, latents, token_times, seed=seed, noise=noise, reduction="none")
    per_target = per_token.new_zeros(len(tasks)).index_add(0, target_index, per_token)
    return {
        task: torch.stack([total for total, of in zip(per_target.unbind(), tasks, strict=True) if of == task]).sum()
        for task in different
    }
