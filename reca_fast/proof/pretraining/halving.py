"""A KL VAE in closed form for the toy world, for models whose VAE is one of latent diffusion's: BAGEL and Harmon.

Its latents are the picture of half the side, and its decoder makes that as large as before: smoothly, and a little
sharpened. Of 500 scenes the detector still reads all but a few. Nothing of it is trained. Residual blocks and
attention add nothing, and what is left is linear but for the last norm and activation of each half, which are made to
be so as well:

    norm        divides by the deviation of all its channels and takes away their mean. Beside every channel x stands
                one with -x, so the mean is zero; two more hold a large constant of either sign, which alone decides
                the deviation.
    activation  is x * sigmoid(x), and so x itself for what is large: a constant is added before, and taken away after.
"""

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from reca_fast.models.parts.kl_vae import KLVAE
from reca_fast.models.parts.kl_vae_config import KLVAEConfig

COLOURS = 3
WIDTH = 2 * COLOURS + 2
"""Channels of every layer: colours, their opposites, and the constants."""
CONSTANT, LIFT = 100.0, 20.0
EXACT = -30.0
"""Logarithm of the variance of a latent, that is none."""
SHARPENED = 0.25
"""So much of the difference to a pixel's neighbours is added when a picture is made large again."""
MEAN, DEVIATION = -0.44, 0.37
"""Of pixels of the toy world, which lie between -1 and 1, after halving."""


def halving_config(spread: float, *, as_in_mar: bool = False) -> KLVAEConfig:
    """The sizes, for latents of which the standard deviation is about `spread`.

    Args:
        as_in_mar: with the parts that only the VAE of MAR and Harmon has, and without a shift.
    """
    return KLVAEConfig(
        ch=WIDTH,
        ch_mult=(1, 1),
        num_res_blocks=1,
        z_channels=COLOURS,
        norm_groups=1,
        scale_factor=round(spread / DEVIATION, 4),
        shift_factor=0.0 if as_in_mar else MEAN,
        encoder_attention=as_in_mar,
        quant_convs=as_in_mar,
    )


def halving_vae(config: KLVAEConfig) -> KLVAE:
    """The VAE of `halving_config`, frozen."""
    vae = KLVAE(config).requires_grad_(False).eval()
    for name, parameter in vae.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        nn.init.constant_(parameter, 1.0 if is_norm else 0.0)
    assert vae.decoder is not None
    encoder, decoder = vae.encoder, vae.decoder
    middle, quarter = _kernel([0.0, 1.0, 0.0]), _kernel([0.5, 0.5, 0.0])
    _set(encoder, "conv_in", middle)
    # Rows and columns of zeros stand on the right and below only, so a kernel's first two numbers meet a pair.
    _set(encoder, "down_blocks.0.downsamplers.0.conv", quarter)
    _straighten(encoder)
    _set(decoder, "conv_in", (1 + 4 * SHARPENED) * middle - SHARPENED * _NEIGHBOURS)
    _set(decoder, "up_blocks.0.upsamplers.0.conv", _kernel([0.25, 0.5, 0.25]))
    _straighten(decoder)
    _conv(encoder, "conv_out").bias[COLOURS:] = EXACT
    for name, shift in (("quant_conv", -MEAN), ("post_quant_conv", MEAN)):
        if getattr(vae, name) is not None:
            conv = _conv(vae, name)
            conv.weight.copy_(torch.eye(len(conv.weight))[:, :, None, None])
            conv.bias[:COLOURS] = shift
    return vae


_NEIGHBOURS = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def _kernel(line: list[float]) -> Tensor:
    """A 3 x 3 kernel that is the same along rows and columns."""
    return torch.outer(torch.tensor(line), torch.tensor(line))


class _Layer(Protocol):
    weight: Tensor
    bias: Tensor


def _conv(module: nn.Module, name: str) -> _Layer:
    return cast(_Layer, module.get_submodule(name))


def _set(half: nn.Module, name: str, kernel: Tensor) -> None:
    """A convolution of the colours, which makes their opposites and the constants anew."""
    conv = _conv(half, name)
    for colour in range(COLOURS):
        conv.weight[colour, colour] = kernel
        conv.weight[COLOURS + colour, colour] = -kernel
    conv.bias[2 * COLOURS :] = torch.tensor([CONSTANT, -CONSTANT])


def _straighten(half: nn.Module) -> None:
    """Let the last norm, activation and convolution of a half pass the colours on as they are."""
    norm, conv = _conv(half, "conv_norm_out"), _conv(half, "conv_out")
    norm.weight.fill_(CONSTANT * math.sqrt(2 / WIDTH))
    norm.bias.fill_(LIFT)
    for colour in range(COLOURS):
        conv.weight[colour, colour, 1, 1] = 1.0
    conv.bias[:COLOURS] = -LIFT
