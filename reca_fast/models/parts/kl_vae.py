"""The FLUX-style VAE: pictures to latents and back, read from and written to the public `ae.safetensors`.

The network is diffusers' `AutoencoderKL`. The file uses the older latent-diffusion (LDM) names and keeps the attention
projections as 1x1 convolutions; one table of names serves both directions.

B pictures; H, W pixels; s = `downsample`, h = H/s, w = W/s latent cells; z latent channels; p latent patch side.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reca_fast.data.images import normalised
from reca_fast.errors import UserError
from reca_fast.kernels import to_device
from reca_fast.models.bagel.config import VAEConfig
from reca_fast.models.files.read import check_layout, open_safetensors, stored_shapes

from .channels_last import to_channels_last

PIXELS_PER_BATCH = 4 * 1024 * 1024
"""How many pixels are encoded at once: the widest activation of the public VAE takes 512 bytes a pixel in fp32."""


class VAE(nn.Module):
    """Encoder and decoder with their latent scaling. Weights come from `load_vae` or from training."""

    def __init__(self, config: VAEConfig, *, with_decoder: bool = True) -> None:
        super().__init__()
        # Here, not above: the import takes seconds.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        levels = len(config.ch_mult)
        net = AutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.out_ch,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(config.ch * mult for mult in config.ch_mult),
            layers_per_block=config.num_res_blocks,
            latent_channels=config.z_channels,
            norm_num_groups=config.norm_groups,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        self.config = config
        self.encoder: nn.Module = net.encoder
        self.decoder: nn.Module | None = net.decoder if with_decoder else None

    @property
    def downsample(self) -> int:
        """Pixels per latent cell along one side."""
        return self.config.downsample

    def moments(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] -> fp32 [B, 2z, h, w]: means, then log-variances (not clamped)."""
        weight = next(self.encoder.parameters())
        return self.encoder(pixels.to(weight.device, weight.dtype)).float().contiguous()

    def sample(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Draw latents [B, z, h, w] from moments [B, 2z, h, w] with standard normal noise [B, z, h, w]."""
        mean, logvar = moments.chunk(2, dim=1)
        return self.config.scale_factor * (mean + torch.exp(0.5 * logvar) * noise - self.config.shift_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, h, w] -> fp32 pixels [B, 3, H, W], about in [-1, 1] (not clamped).

        Raises UserError when only the encoder was loaded.
        """
        if self.decoder is None:
            raise UserError("This VAE file holds only the encoder; pictures need one with decoder.* keys.")
        weight = next(self.decoder.parameters())
        z = latents.float() / self.config.scale_factor + self.config.shift_factor
        return self.decoder(z.to(weight.device, weight.dtype)).float().contiguous()


# File name, diffusers name. {half} encoder or decoder, {l} level as the file counts, {r} level counted from the other
# end (diffusers numbers the decoder's levels in running order), {b} block; expanded by `_modules`.
_RESIDUAL_BLOCKS = (
    ("encoder.down.{l}.block.{b}", "encoder.down_blocks.{l}.resnets.{b}"),
    ("decoder.up.{l}.block.{b}", "decoder.up_blocks.{r}.resnets.{b}"),
    ("{half}.mid.block_1", "{half}.mid_block.resnets.0"),
    ("{half}.mid.block_2", "{half}.mid_block.resnets.1"),
)
_RESIDUAL_PARTS = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
)
_OTHERS = (
    ("{half}.conv_in", "{half}.conv_in"),
    ("{half}.norm_out", "{half}.conv_norm_out"),
    ("{half}.conv_out", "{half}.conv_out"),
    ("encoder.down.{l}.downsample.conv", "encoder.down_blocks.{l}.downsamplers.0.conv"),
    ("decoder.up.{l}.upsample.conv", "decoder.up_blocks.{r}.upsamplers.0.conv"),
    ("{half}.mid.attn_1.norm", "{half}.mid_block.attentions.0.group_norm"),
    ("{half}.mid.attn_1.q", "{half}.mid_block.attentions.0.to_q"),
    ("{half}.mid.attn_1.k", "{half}.mid_block.attentions.0.to_k"),
    ("{half}.mid.attn_1.v", "{half}.mid_block.attentions.0.to_v"),
    ("{half}.mid.attn_1.proj_out", "{half}.mid_block.attentions.0.to_out.0"),
)


def _modules(config: VAEConfig) -> Iterator[tuple[str, str]]:
    """(file name, diffusers name) of every module that a VAE of this many levels and blocks can have."""
    patterns = [*_OTHERS]
    for (file_block, own_block), (file_part, own_part) in product(_RESIDUAL_BLOCKS, _RESIDUAL_PARTS):
        patterns.append((f"{file_block}.{file_part}", f"{own_block}.{own_part}"))
    levels = len(config.ch_mult)
    for half, level, block in product(("encoder", "decoder"), range(levels), range(config.num_res_blocks + 1)):
        place = {"half": half, "l": level, "r": levels - 1 - level, "b": block}
        for file_pattern, own_pattern in patterns:
            yield file_pattern.format(**place), own_pattern.format(**place)


def key_table(vae: VAE) -> dict[str, str]:
    """Key in the file -> key in `vae.state_dict()`, for every tensor that this VAE has."""
    file_names = {own: file for file, own in _modules(vae.config)}
    table = {}
    for own in vae.state_dict():
        module, _, kind = own.rpartition(".")
        table[f"{file_names[module]}.{kind}"] = own
    return table


def _file_shape(own_key: str, tensor: Tensor) -> list[int]:
    """Shape in the file: attention projections are linear here and 1x1 convolutions there."""
    is_projection = ".attentions." in own_key and tensor.ndim == 2
    return [*tensor.shape, 1, 1] if is_projection else list(tensor.shape)


def load_vae(
    path: str | Path, config: VAEConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VAE:
    """Read `ae.safetensors` (both halves, or the encoder alone) into a frozen VAE in eval mode.

    Raises UserError when the file is absent or unreadable, or when a tensor is missing, unexpected or misshapen.
    """
    path = Path(path)
    with open_safetensors(path, str(device)) as file:
        shapes = stored_shapes(path)
        with torch.device("meta"):
            vae = VAE(config, with_decoder=any(key.startswith("decoder.") for key in shapes))
        table, empty = key_table(vae), vae.state_dict()
        check_layout(path, {key: _file_shape(own, empty[own]) for key, own in table.items()}, shapes)
        weights = {own: file.get_tensor(key).to(dtype).view(empty[own].shape) for key, own in table.items()}
    vae.load_state_dict(weights, assign=True)
    if torch.device(device).type == "cuda":
        to_channels_last(vae)
    return vae.requires_grad_(False).eval()


def save_vae(vae: VAE, path: str | Path) -> None:
    """Write the VAE's weights under the public names, in the dtype that they have."""
    state = vae.state_dict()
    tensors = {key: state[own].detach().cpu().view(_file_shape(own, state[own])) for key, own in key_table(vae).items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def patchify_latents(latents: Tensor, p: int = 2) -> Tensor:
    """Latents [z, h, w] -> tokens [(h/p)*(w/p), p*p*z], feature (a*p + b)*z + c for row a, column b, channel c."""
    z, height, width = latents.shape
    grid = latents.view(z, height // p, p, width // p, p)
    return grid.permute(1, 3, 2, 4, 0).reshape(-1, p * p * z)


def unpatchify_latents(tokens: Tensor, rows: int, cols: int, p: int, z: int) -> Tensor:
    """Inverse of `patchify_latents`: tokens [rows*cols, p*p*z] -> latents [z, rows*p, cols*p]."""
    return tokens.view(rows, cols, p, p, z).permute(4, 0, 2, 1, 3).reshape(z, rows * p, cols * p)


@torch.no_grad()
def encode_pictures(
    vae: VAE,
    pictures: Sequence[Tensor],
    noise: torch.Generator | Sequence[Tensor],
    *,
    pixels_per_batch: int = PIXELS_PER_BATCH,
) -> list[Tensor]:
    """Sample the latents [z, h, w] (fp32, on the VAE's device) of uint8 pictures [H, W, 3], in their order.

    Each picture is encoded as if alone: GroupNorm and the attention see a whole picture, so a padded canvas would
    change the latents of the smaller ones. Pictures of one size share a batch of at most `pixels_per_batch` pixels.

    `noise`: the standard normal noise [z, h, w] of each picture, or the generator that draws it in the pictures' order
    (so that the draw does not depend on how pictures share batches). H and W must be multiples of `vae.downsample`.
    """
    device, s, z = next(vae.encoder.parameters()).device, vae.downsample, vae.config.z_channels
    if isinstance(noise, torch.Generator):
        sizes = [(z, picture.shape[0] // s, picture.shape[1] // s) for picture in pictures]
        noise = [torch.randn(size, generator=noise, device=noise.device) for size in sizes]
    by_size: dict[torch.Size, list[int]] = {}
    for index, picture in enumerate(pictures):
        by_size.setdefault(picture.shape, []).append(index)
    latents: dict[int, Tensor] = {}
    for size, members in by_size.items():
        together = max(1, pixels_per_batch // (size[0] * size[1]))
        for start in range(0, len(members), together):
            batch = members[start : start + together]
            pixels = torch.stack([pictures[i] for i in batch]).to(device).permute(0, 3, 1, 2)
            moments = vae.moments(normalised(pixels))
            drawn = vae.sample(moments, to_device(torch.stack([noise[i] for i in batch]), device))
            latents.update(zip(batch, drawn, strict=True))
    return [latents[index] for index in range(len(pictures))]
