"""SANA's autoencoder, a DC-AE from diffusers: its encoder for training, its decoder for drawing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reca_fast.models.files import NameTable
from reca_fast.models.parts.channels_last import to_channels_last
from reca_fast.models.parts.lean_import import lean_import

from .config import DCAEConfig

ENCODER_NAMES = NameTable((("*", "vae.encoder.*"),), under="vae.encoder.")
DECODER_NAMES = NameTable((("*", "vae.decoder.*"),), under="vae.decoder.")


def empty_half(config: DCAEConfig, half: str) -> nn.Module:
    """The encoder or the decoder, frozen and on the meta device."""
    with lean_import():  # here, not above: the import takes seconds, and whoever trains from a cache needs neither
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    with torch.device("meta"):
        vae: Any = AutoencoderDC(**config.keywords())
    module: nn.Module = vae.get_submodule(half)
    return module.requires_grad_(False).eval()


def in_channels_last(module: nn.Module) -> nn.Module:
    """The same module, its convolutions in the order of memory that they and the norms between them like best."""
    to_channels_last(module)
    return module


def encode(encoder: Callable[[Tensor], Tensor], config: DCAEConfig, picture: Tensor, dtype: torch.dtype) -> Tensor:
    """The scaled latents of one picture.

    Args:
        picture: uint8 [H, W, 3], or fp32 [3, H, W] in [-1, 1].
        dtype: of the encoder's weights.

    Returns:
        fp32 (or wider) [latent_channels, H / downsample, W / downsample].
    """
    pixels = to_pixels(picture).to(dtype)
    latents = encoder(pixels[None].contiguous(memory_format=torch.channels_last))[0]
    return latents.to(torch.promote_types(dtype, torch.float32)) * config.scaling_factor


def decode(decoder: Callable[[Tensor], Tensor], config: DCAEConfig, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """The pictures of scaled latents [pictures, latent_channels, h, w]: uint8 [pictures, H, W, 3]."""
    scaled = (latents / config.scaling_factor).to(dtype)
    pixels = decoder(scaled.contiguous(memory_format=torch.channels_last))
    return (127.5 * pixels.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def to_pixels(picture: Tensor) -> Tensor:
    """fp32 [3, H, W] in [-1, 1] of a picture uint8 [H, W, 3]; one that is in fractions already is given back."""
    return picture if picture.is_floating_point() else picture.permute(2, 0, 1).float() / 127.5 - 1
