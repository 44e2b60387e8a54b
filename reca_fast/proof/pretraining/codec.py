"""A DC-AE whose latents are the principal components of 8 x 8 patches: computed from pictures, not trained.

Both halves are of AutoencoderDC's own layers, with weights under which they compute nothing but a linear map:

    encoder   pixels --unshuffle three times--> 192 numbers a patch --components--> latents
    decoder   latents --components, transposed--> 192 numbers a patch --shuffle three times--> pixels

Residual blocks are zero, and shortcuts pass values on as they are. Before its last layer the decoder divides each place
by the root mean square of its channels and cuts off what is negative: channels that hold a large constant keep that
root the same everywhere, and a constant added before the cut is taken away after it.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.models.openuni.config import DCAEConfig
from reca_fast.models.openuni.dcae import empty_half

HALVINGS = 3
"""How often both sides of a picture are halved."""
RESIDUAL: Literal["ResBlock"] = "ResBlock"
FIRST, PATCH = 3 * 4, 3 * 4**HALVINGS
"""Numbers of a place after one halving, and after all of them."""
CONSTANT = 100.0
"""What the decoder's other channels hold: the square of a pixel over that of this is what the output is off by."""
LIFT = 6.0
"""Added before the cut; drawn pixels, from -1 to 1, stay above minus this."""


class Components(NamedTuple):
    """The principal components of patches in the order of the encoder's channels."""

    mean: Tensor  # fp32 [PATCH]
    directions: Tensor  # fp32 [latent channels, PATCH], orthonormal
    spread: float  # standard deviation of all latents
    kept: float  # share of the variance of patches that they keep


def patches(pictures: Tensor) -> Tensor:
    """The patches of pictures uint8 [N, H, W, 3] as fp32 [N, H / 8 * W / 8, PATCH], pixels from -1 to 1."""
    x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    for _ in range(HALVINGS):
        x = F.pixel_unshuffle(x, 2)
    return x.flatten(2).mT


def components(pictures: Tensor, channels: int) -> Components:
    """The first `channels` principal components of the patches of pictures uint8 [N, H, W, 3]. Each direction's largest
    number is positive, so that every machine finds the same.
    """
    rows = patches(pictures).flatten(0, 1).double()
    mean = rows.mean(0)
    variances, vectors = torch.linalg.eigh((rows - mean).mT @ (rows - mean) / len(rows))
    directions = vectors.flip(1)[:, :channels].mT
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    kept = variances.flip(0)[:channels].sum() / variances.sum()
    latents = (rows - mean) @ directions.mT
    return Components(mean.float(), directions.float(), latents.std().item(), kept.item())


def codec_config(channels: int, scaling_factor: float) -> DCAEConfig:
    """The sizes of the DC-AE. `channels` of the latents must divide PATCH and PATCH + PATCH / 4."""
    widths = [3 * 4**halvings for halvings in range(1, HALVINGS + 1)]
    wider = [width * 5 // 4 for width in widths]  # the decoder's: a quarter more, for the constants
    stages = HALVINGS + 1
    layers = (0, *[1] * (HALVINGS - 1), 0)
    return DCAEConfig(
        latent_channels=channels,
        encoder_block_types=(RESIDUAL,) * stages,
        decoder_block_types=(RESIDUAL,) * stages,
        encoder_block_out_channels=(widths[0], *widths),
        decoder_block_out_channels=(wider[0], *wider),
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
        scaling_factor=scaling_factor,
    )


def encoder_half(config: DCAEConfig, found: Components) -> nn.Module:
    """The encoder: the patches of a picture, without their mean, along the directions."""
    encoder = _zeros(config, "encoder")
    channels = config.latent_channels
    shortcut = torch.eye(channels).repeat_interleave(PATCH // channels, 1) * channels / PATCH  # the mean of neighbours
    _set(encoder, "conv_in.conv", torch.eye(3))
    _set(encoder, "conv_out", found.directions - shortcut, -(found.directions @ found.mean))
    return encoder


def decoder_half(config: DCAEConfig, found: Components) -> nn.Module:
    """The decoder: the sum of the directions, and the mean."""
    decoder = _zeros(config, "decoder")
    wide, channels = config.decoder_block_out_channels[-1], config.latent_channels
    shortcut = torch.eye(channels).repeat_interleave(wide // channels, 0)  # each latent repeated
    _set(
        decoder,
        "conv_in",
        F.pad(found.directions.mT, (0, 0, 0, wide - PATCH)) - shortcut,
        F.pad(found.mean, (0, wide - PATCH), value=CONSTANT),
    )
    norm: nn.Module = decoder.get_submodule("norm_out")
    scale = CONSTANT * (1 - PATCH / wide) ** 0.5  # the root mean square of a place
    norm.get_parameter("weight")[:FIRST] = scale
    norm.get_parameter("bias")[:FIRST] = LIFT
    _set(decoder, "conv_out.conv", torch.eye(FIRST), torch.full((FIRST,), -LIFT))
    return decoder


def _zeros(config: DCAEConfig, half: str) -> nn.Module:
    module = empty_half(config, half).to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.zero_()
    return module


def _set(module: nn.Module, name: str, matrix: Tensor, bias: Tensor | None = None) -> None:
    """Make a convolution of 3 x 3 compute a matrix of its channels alone; further input channels count nothing."""
    weight = module.get_parameter(f"{name}.weight")
    weight[: matrix.shape[0], : matrix.shape[1], 1, 1] = matrix
    if bias is not None:
        module.get_parameter(f"{name}.bias")[: len(bias)] = bias
