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
from reca_fast.kernels import to_device
from reca_fast.models.files import Weights, fill, open_weights, uniform
from reca_fast.models.files.write import Stored, write_safetensors

from .channels_last import to_channels_last
from .kl_vae_config import KLVAEConfig
from .kl_vae_names import kl_vae_names
from .lean_import import lean_import

PIXELS_AT_ONCE = 4 * 1024 * 1024
"""How many pixels are encoded at once: the widest activation of FLUX.1's VAE takes 512 bytes a pixel in fp32."""


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
        """Latents [B, z, h, w] from moments [B, 2z, h, w] and standard normal noise [B, z, h, w].

        With noise of zeros these are the latents of the means.
        """
        mean, logvar = moments.chunk(2, dim=1)
        return self.config.scale_factor * (mean + torch.exp(0.5 * logvar) * noise - self.config.shift_factor)

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
    weights: Weights, config: KLVAEConfig, device: torch.device | str, dtype: torch.dtype, under: str = ""
) -> KLVAE:
    """Like `read_kl_vae`, from an opened file in which the VAE's keys stand below the prefix `under`."""
    with_decoder = any(key.startswith(f"{under}decoder.") for key in weights.shapes)
    with torch.device("meta"):
        vae = KLVAE(config, with_decoder=with_decoder).requires_grad_(False).eval()
    fill(vae, weights, uniform(dtype, device), kl_vae_names(config).within(file=under))
    if torch.device(device).type == "cuda":
        to_channels_last(vae)
    return vae


def save_kl_vae(vae: KLVAE, path: str | Path) -> None:
    """Write a VAE's weights under their public names, in the dtypes that they have."""
    state, names = vae.state_dict(), kl_vae_names(vae.config)
    keys = names.keys(state)
    shapes = {key: names.stored_shape(name, state[name].shape) for key, name in keys.items()}
    layout = {key: Stored(state[name].dtype, shapes[key]) for key, name in keys.items()}
    write_safetensors(Path(path), layout, lambda key: state[keys[key]].reshape(shapes[key]))


@torch.no_grad()
def encode_pictures(
    vae: KLVAE,
    pictures: Sequence[Tensor],
    noise: Sequence[Tensor],
    *,
    pixels_at_once: int = PIXELS_AT_ONCE,
) -> list[Tensor]:
    """Latents of pictures, drawn from the distributions that the encoder gives for them.

    Each picture is encoded as if alone: GroupNorm and the attention see a whole picture, so a padded canvas would
    change the latents of the smaller ones. Pictures of one size share a batch of at most `pixels_at_once` pixels.

    Args:
        vae: whose device is used.
        pictures: uint8 [H, W, 3] each, on any device; H and W are multiples of `vae.downsample`.
        noise: for each picture, standard normal noise [z, h, w].

    Returns:
        fp32 [z, h, w] on the VAE's device for each picture, in their order.
    """
    device = next(vae.encoder.parameters()).device
    by_size: dict[torch.Size, list[int]] = {}
    for index, picture in enumerate(pictures):
        by_size.setdefault(picture.shape, []).append(index)
    latents: dict[int, Tensor] = {}
    for size, members in by_size.items():
        together = max(1, pixels_at_once // (size[0] * size[1]))
        for start in range(0, len(members), together):
            batch = members[start : start + together]
            pixels = torch.stack([pictures[i] for i in batch]).to(device).permute(0, 3, 1, 2)
            moments = vae.moments(normalised(pixels))
            drawn = vae.sample(moments, to_device(torch.stack([noise[i] for i in batch]), device))
            latents.update(zip(batch, drawn, strict=True))
    return [latents[index] for index in range(len(pictures))]
