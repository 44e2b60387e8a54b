"""The VAE on a GPU, with the channels of a pixel side by side in memory from its first convolution to its last.

cuDNN's half-precision convolutions read and write that layout. torch's GroupNorm on a GPU does not (2.10 to 2.13 copy
its input to rows of one channel), so every block would turn its activations over twice. The same formula in terms of
the other layout costs what theirs costs, without the copies.
"""

import torch
from torch import Tensor, nn


class ChannelsLastGroupNorm(nn.GroupNorm):
    """nn.GroupNorm that keeps the layout of [B, C, H, W] with channels last, on every device."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or input.is_contiguous():
            return super().forward(input)
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """F.group_norm of x [B, C, H, W] with channels last; the same layout and statistics in fp32 or wider.

    Moments are taken per channel, which reads memory in its order, and then joined per group: the variance of a group
    is the mean of its channels' variances plus the variance of their means.

    Returns:
        fp32 (fp64 for fp64), as F.group_norm does under autocast, else in the dtype of x.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    variance, mean = torch.var_mean(rows.to(wide), dim=1, correction=0)
    variance, mean = (m.unflatten(1, (groups, -1)) for m in (variance, mean))
    center = mean.mean(-1, keepdim=True)
    spread = variance.mean(-1, keepdim=True) + (mean - center).square().mean(-1, keepdim=True)
    factor = (spread + eps).rsqrt() * weight.to(wide).view(groups, -1)
    offset = bias.to(wide).view(groups, -1) - center * factor
    out = torch.addcmul(offset.flatten(1)[:, None], rows, factor.flatten(1)[:, None])
    out = out if torch.is_autocast_enabled(x.device.type) else out.to(x.dtype)
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


def to_channels_last(module: nn.Module) -> None:
    """Lay out the convolutions' weights, and replace every GroupNorm by one that keeps the layout."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for child in module.modules():
        if type(child) is nn.GroupNorm:
            child.__class__ = ChannelsLastGroupNorm
