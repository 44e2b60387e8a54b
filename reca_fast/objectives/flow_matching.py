"""Flow matching with logit-normal timesteps (RECA eq. 3 for BAGEL and OpenUni)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reca_fast.kernels import flow_matching_loss


def shifted_logit_normal(normal: Tensor, shift: float) -> Tensor:
    """Standard normal draws -> timesteps in (0, 1): t = sigmoid(n), then s t / (1 + (s - 1) t). Any shape; s = 1
    changes nothing.
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
    """Sum over tokens of the squared velocity error, by task.

    Pictures of one task, the usual case, cost one pass over the tokens that also forms the gradient; those of several
    need a second pass for it.

    Args:
        velocity, latents: [G, C]; timesteps: [M], one per target picture; target_index: [G], picture of each token.
        tasks: [M], "reca" or "t2i".
        seed, noise: exactly one of them, what `flow_interpolate` was given; noise: [G, C].

    Returns:
        task -> 0-d sum (fp32 or wider) over the tokens of that task's pictures.
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
