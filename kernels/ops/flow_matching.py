"""Flow matching: the point on the path from data to noise, and the squared velocity error there."""

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


def _check(latents: Tensor, timesteps: Tensor, noise: Tensor) -> None:
    if latents.dim() != 2:
        raise ValueError(f"latents: expected [T, C], got {list(latents.shape)}")
    if timesteps.shape != latents.shape[:1]:
        raise ValueError(f"timesteps: expected [{latents.shape[0]}], got {list(timesteps.shape)}")
    if noise.shape != latents.shape:
        raise ValueError(f"noise: expected {list(latents.shape)}, got {list(noise.shape)}")


def flow_interpolate(latents: Tensor, timesteps: Tensor, *, noise: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps. latents, noise: [T, C]; timesteps: [T] in [0, 1]; returns [T, C]."""
    _check(latents, timesteps, noise)
    t = timesteps.unsqueeze(-1)
    return (1 - t) * latents + t * noise


def flow_matching_loss(
    prediction: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    *,
    noise: Tensor,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean over C of (prediction - (noise - latents))^2 per token, then reduced over tokens.

    Args:
        prediction, latents, noise: [T, C]; the error is formed in fp32 (fp64 for fp64 inputs).
        timesteps: [T], checked for shape only: the velocity of a straight path does not depend on t.
        row_weight: [T], or None for ones.
        reduction: "none" = w·l [T], "sum" = sum of w·l, "mean" = sum of w·l / sum of w.
    """
    _check(latents, timesteps, noise)
    if prediction.shape != latents.shape:
        raise ValueError(f"prediction: expected {list(latents.shape)}, got {list(prediction.shape)}")
    if row_weight is not None and row_weight.shape != timesteps.shape:
        raise ValueError(f"row_weight: expected {list(timesteps.shape)}, got {list(row_weight.shape)}")
    wide = torch.promote_types(prediction.dtype, torch.float32)
    per_token = (prediction.to(wide) - (noise.to(wide) - latents.to(wide))).square().mean(-1)
    if row_weight is not None:
        per_token = per_token * row_weight
    if reduction == "none":
        return per_token
    if reduction == "sum":
        return per_token.sum()
    if reduction != "mean":
        raise ValueError(f"reduction={reduction!r}: expected 'mean', 'sum' or 'none'")
    return per_token.mean() if row_weight is None else per_token.sum() / row_weight.sum()
