"""Convolutional networks in the channels-last layout: the channels of a pixel stand side by side in memory.

cuDNN's half-precision convolutions read and write that layout. torch's GroupNorm on a GPU does not: in torch 2.10 to
2.13 it first copies its input to the other layout, so every block would turn its activations over twice. The GroupNorm
here computes the same in channels last, at the same cost and without the copies.
"""

import torch
from torch import Tensor, nn


class ChannelsLastGroupNorm(nn.GroupNorm):
    """nn.GroupNorm whose output has the layout of its input [B, C, H, W], also when that is channels last."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or input.is_contiguous():
            return super().forward(input)
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """F.group_norm for a channels-last tensor, with statistics in fp32 (fp64 for fp64).

    Means and variances are taken per channel, which reads memory in its order, and then joined per group: the variance
    of a group is the mean of its channels' variances plus the variance of their means.

    Args:
        x: [B, C, H, W], channels last.
        groups: into how many groups the C channels are divided.
        weight, bias: [C].
        eps: added to the variance.

    Returns:
        [B, C, H, W], channels last, in the dtype of x; under autocast in that of the statistics, as F.group_norm.
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
    """Turn a network to channels last, in place: the weights of its convolutions, and every GroupNorm in it."""
    for child in module.modules():
        for name, weight in list(child.named_parameters(recurse=False)):
            if weight.dim() == 4:
                turned = weight.detach().contiguous(memory_format=torch.channels_last)
                setattr(child, name, nn.Parameter(turned, requires_grad=weight.requires_grad))
        if type(child) is nn.GroupNorm:
            child.__class__ = ChannelsLastGroupNorm
