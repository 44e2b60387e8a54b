"""The KL VAE of latent-diffusion models: pictures to latents and back.

Letters in shapes: B pictures of H x W pixels; h = H / downsample rows and w = W / downsample columns of latent cells;
z channels of a latent cell.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from reca_fast.data.images import normalised
from reca_fast.errors import UserError
from reca_fast.kernels import gpu_assumed, to_device
from reca_fast.models.files import EmptyWeights, NameTable, Weights, fill, open_weights, uniform
from reca_fast.models.files.identity import identity_of_tensors
from reca_fast.models.files.write import Stored, write_safetensors

from .channels_last import to_channels_last
from .kl_vae_config import KLVAEConfig
from .kl_vae_names import kl_vae_names
from .lean_import import lean_import


class KLVAE(nn.Module):
    """Encoder and decoder, with the scaling of the latents. Its weights are random until `fill` gives it others.

    Args:
        config: the sizes.
        with_decoder: False leaves the decoder out; training needs only the encoder.
    """

    def __init__(self, config: KLVAEConfig, *, with_decoder: bool = True) -> None:
        super().__init__()
        # Here, not above: the import takes seconds.
        with lean_import():
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        levels = len(config.ch_mult)
        last_down = "AttnDownEncoderBlock2D" if config.encoder_attention else "DownEncoderBlock2D"
        net = AutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.out_ch,
            down_block_types=(*("DownEncoderBlock2D",) * (levels - 1), last_down),
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(config.ch * mult for mult in config.ch_mult),
            layers_per_block=config.num_res_blocks,
            latent_channels=config.z_channels,
            norm_num_groups=config.norm_groups,
            use_quant_conv=config.quant_convs,
            use_post_quant_conv=config.quant_convs,
        )
        self.config = config
        self.encoder: nn.Module = net.encoder
        self.quant_conv: nn.Module | None = net.quant_conv
        self.decoder: nn.Module | None = net.decoder if with_decoder else None
        self.post_quant_conv: nn.Module | None = net.post_quant_conv if with_decoder else None

    @property
    def downsample(self) -> int:
        """Pixels per latent cell along one side."""
        return self.config.downsample

    def moments(self, pixels: Tensor) -> Tensor:
        """The distribution of the latents that the encoder gives for pictures.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], of any dtype; H and W are multiples of `downsample`.

        Returns:
            fp32 [B, 2z, h, w]: the means of z, then the logarithms of its variances (not clamped).
        """
        weight = next(self.encoder.parameters())
        moments: Tensor = self.encoder(pixels.to(weight.device, weight.dtype))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return moments.float().contiguous()

    def sample(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Latents [B, z, h, w] from moments [B, 2z, h, w] and standard normal noise: see `draw_latents`."""
        return draw_latents(self.config, moments, noise)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, h, w] -> fp32 pixels [B, 3, H, W], about in [-1, 1] (not clamped).

        Raises:
            UserError: this VAE was built without its decoder.
        """
        if self.decoder is None:
            raise UserError("This VAE file holds only the encoder; pictures need one with decoder.* keys.")
        weight = next(self.decoder.parameters())
        z = (latents.float() / self.config.scale_factor + self.config.shift_factor).to(weight.device, weight.dtype)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        pixels: Tensor = self.decoder(z)
        return pixels.float().contiguous()


def read_kl_vae(
    path: str | Path, config: KLVAEConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> KLVAE:
    """A frozen VAE in eval mode, filled from a file of its own; without decoder if the file has only the encoder.

    Raises:
        UserError: the file is missing or damaged, or a tensor is missing, unexpected or misshapen.
    """
    with open_weights(Path(path)) as weights:
        return fill_kl_vae(weights, config, device, dtype)


def fill_kl_vae(
    weights: Weights,
    config: KLVAEConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    under: str = "",
    names: NameTable | None = None,
) -> KLVAE:
    """Like `read_kl_vae`, from an opened file in which the VAE's keys stand below the prefix `under`.

    Args:
        names: what the file calls the tensors; None: as the older latent-diffusion code does.
    """
    with_decoder = any(key.startswith(f"{under}decoder.") for key in weights.shapes)
    vae = _unfilled(config, with_decoder)
    fill(vae, weights, uniform(dtype, device), (names or kl_vae_names(config)).within(file=under))
    if torch.device(device).type == "cuda":
        to_channels_last(vae)
    return vae


def identity_of_kl_vae(weights: Weights, config: KLVAEConfig, under: str = "") -> str:
    """A checksum of what encodes pictures: the encoder's tensors in an opened file, below the prefix `under`, and the
    sizes. The decoder has no part in it.
    """
    halves = (f"{under}encoder.", f"{under}quant_conv.")
    keys = {key.removeprefix(under): key for key in weights.shapes if key.startswith(halves)}
    return identity_of_tensors(weights, keys, config)


def empty_kl_vae(config: KLVAEConfig, device: torch.device | str, dtype: torch.dtype = torch.float32) -> KLVAE:
    """A frozen VAE in eval mode, with decoder, whose weights hold no particular numbers."""
    vae = _unfilled(config, with_decoder=True)
    fill(vae, EmptyWeights(vae), uniform(dtype, device))
    if torch.device(device).type == "cuda" or gpu_assumed():
        to_channels_last(vae)
    return vae


def _unfilled(config: KLVAEConfig, with_decoder: bool) -> KLVAE:
    with torch.device("meta"):
        return KLVAE(config, with_decoder=with_decoder).requires_grad_(False).eval()


def save_kl_vae(vae: KLVAE, path: str | Path) -> None:
    """Write a VAE's weights under their public names, in the dtypes that they have."""
    state, names = vae.state_dict(), kl_vae_names(vae.config)
    keys = names.keys(state)
    shapes = {key: names.stored_shape(name, state[name].shape) for key, name in keys.items()}
    layout = {key: Stored(state[name].dtype, shapes[key]) for key, name in keys.items()}
    write_safetensors(Path(path), layout, lambda key: state[keys[key]].reshape(shapes[key]))


def draw_latents(config: KLVAEConfig, moments: Tensor, noise: Tensor) -> Tensor:
    """Latents [..., z, h, w] from moments [..., 2z, h, w] and standard normal noise [..., z, h, w].

    Of a VAE it takes the scale and the shift alone, so it needs no weights. With noise of zeros these are the latents
    of the means.
    """
    mean, logvar = moments.chunk(2, dim=-3)
    return config.scale_factor * (mean + torch.exp(0.5 * logvar) * noise - config.shift_factor)


@torch.no_grad()
def picture_moments(vae: KLVAE, picture: Tensor) -> Tensor:
    """The distribution of the latents of one picture: `KLVAE.moments` without its first dimension, fp32 [2z, h, w].

    A picture is encoded alone, on the VAE's device, so these are the same bits whatever else is in a pack. GroupNorm
    and the attention see a whole picture: a padded canvas would change the smaller ones. And convolutions of several
    pictures of one size, though they mean the same, may round otherwise than those of one.

    Args:
        vae: with its weights.
        picture: uint8 [H, W, 3], on any device; H and W are multiples of `vae.downsample`.
    """
    device = next(vae.encoder.parameters()).device
    return vae.moments(normalised(picture.to(device)[None].permute(0, 3, 1, 2)))[0]


def encode_pictures(vae: KLVAE, pictures: Sequence[Tensor], noise: Sequence[Tensor]) -> list[Tensor]:
    """Latents of pictures, drawn from the distributions that the encoder gives for them, each as if alone.

    Args:
        vae: whose device is used.
        pictures: uint8 [H, W, 3] each, on any device; H and W are multiples of `vae.downsample`.
        noise: for each picture, standard normal noise [z, h, w].

    Returns:
        fp32 [z, h, w] on the VAE's device for each picture, in their order.
    """
    moments = [picture_moments(vae, picture) for picture in pictures]
    return [draw_latents(vae.config, m, to_device(draw, m.device)) for m, draw in zip(moments, noise, strict=True)]
