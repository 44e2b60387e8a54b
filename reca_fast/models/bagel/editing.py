"""Editing a picture as an instruction says: the sizes that BAGEL knows the picture in, and its authors' settings.

The prefix of an edit is the picture as latents, the picture as vision patches, and the instruction. What is drawn has
the size that the latents were made of, so that each of its latent tokens finds the one of its place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reca_fast.config import ResizeConfig
from reca_fast.config.sampling import GuidanceRenorm
from reca_fast.data.images import fitted_size, resize
from reca_fast.data.inputs import Size
from reca_fast.randomness import generator

from .collate import Source
from .config import BagelConfig
from .sampling import BagelSampling

LEAST_PATCHES = 16
"""Patches along the shorter side of what the ViT sees, as far as the longer side allows it: 224 pixels."""


@dataclass(frozen=True)
class BagelEditing(BagelSampling):
    """The fields of `SamplingConfig` that an edit follows, as the authors' app and notebook set them."""

    image_guidance: float = 2.0
    guidance_renorm: GuidanceRenorm = "text_channel"


def edited_size(config: BagelConfig, size: Size) -> Size:
    """Width and height of the edit of a picture of this width and height, in pixels.

    The aspect ratio is kept as far as multiples of a latent token's side allow. The longer side becomes at most the
    model's largest (1024 for BAGEL-7B-MoT) and the shorter at least half of that, the former where both are impossible.
    """
    largest = config.latent_stride * config.glue.max_latent_size
    return fitted_size(*size, ResizeConfig(largest, largest // 2, config.latent_stride))


def seen_size(config: BagelConfig, size: Size) -> Size:
    """Width and height in which the ViT sees a picture of the size of its edit: at most 980, at least 224 pixels."""
    patch, side = config.vit.patch_size, config.glue.vit_max_num_patch_per_side
    return fitted_size(*size, ResizeConfig(patch * side, patch * min(LEAST_PATCHES, side), patch))


def source_of(config: BagelConfig, picture: Tensor, seed: int) -> Source:
    """A picture uint8 [H, W, 3] of any size as the condition of its edit.

    As in the authors' inferencer, the ViT's picture is made of the one that is resized for the VAE.
    """
    width, height = size = edited_size(config, (picture.shape[1], picture.shape[0]))
    latents = resize(picture, size, "exact")
    patches = resize(latents, seen_size(config, size), "exact")
    cell = config.vae.downsample
    shape = config.vae.z_channels, height // cell, width // cell
    return Source(latents, patches, torch.randn(shape, generator=generator("edited", seed)))
