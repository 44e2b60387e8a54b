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
    velocity: Tensor, latents: Tensor, timesteps: Tensor, noise: Tensor, image_index: Tensor, tasks: Sequence[str]
) -> dict[str, Tensor]:
    """Sum over tokens of the squared velocity error, by task.

    Args:
        velocity, latents, noise: [G, C]; timesteps: [M], one per target picture; image_index: [G], picture of each
        token.
        tasks: [M], "reca" or "t2i".

    Returns:
        task -> 0-d sum (fp32 or wider) over the tokens of that task's pictures.
    """
    per_token = flow_matching_loss(velocity, latents, timesteps[image_index], noise=noise, reduction="none")
    per_image = per_token.new_zeros(len(tasks)).index_add(0, image_index, per_token)
    return {
        task: torch.stack([total for total, of in zip(per_image.unbind(), tasks, strict=True) if of == task]).sum()
        for task in dict.fromkeys(tasks)
    }
