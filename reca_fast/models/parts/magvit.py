"""The MAGVIT-v2 tokenizer: pictures to integer codes without a lookup table, and back.

The encoder gives a vector for each cell of a picture; the signs of its numbers, read as bits, are the cell's code.
Letters in shapes: B pictures of H x W pixels; h = H / downsample rows and w = W / downsample columns of cells; z bits.

It always computes in fp32 (on a GPU with TF32 convolutions), also inside an autocast region: narrower numbers would
change the sign of what lies near zero, and so the code.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.data.images import normalised
from reca_fast.errors import UserError
from reca_fast.kernels import gpu_assumed
from reca_fast.models.files import (
    SAME_NAMES,
    EmptyWeights,
    NameTable,
    Weights,
    check_finite,
    check_fit,
    fill,
    open_weights,
    uniform,
)
from reca_fast.models.files.identity import identity_of_tensors

from .channels_last import to_channels_last
from .magvit_config import MagvitConfig

MAGVIT_FOLDER = "magvitv2"
"""The tokenizer's folder inside a checkpoint folder."""
MAGVIT_FILES = ("pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin")
"""Names that its file of weights may have; the first that is there counts."""
GROUPS, EPSILON = 32, 1e-6
TABLES = frozenset({"quantize.embedding", "quantize.power_vals"})
"""What the public file holds beside the weights: every code as a vector of signs, and the powers of two."""


def magvit_names(under: str = "", *, with_decoder: bool = True) -> NameTable:
    """The public names of the tensors of `Magvit`, below the prefix `under`; without a decoder its tensors in the file
    are another module's.
    """
    others = () if with_decoder else ("decoder.",)
    return NameTable(SAME_NAMES.rules, others=others, ignored=TABLES).within(file=under)


class Magvit(nn.Module):
    """The tokenizer. Its weights are random until `fill` gives it others.

    Args:
        config: the sizes.
        with_decoder: False leaves the decoder out; training needs only the encoder.
    """

    def __init__(self, config: MagvitConfig, *, with_decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config) if with_decoder else None

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return self.config.downsample

    def z(self, pixels: Tensor) -> Tensor:
        """What the encoder makes of pictures, before the signs are taken.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], of any dtype; H and W are multiples of `downsample`.

        Returns:
            fp32 [B, z, h, w].
        """
        weight = self.encoder.conv_in.weight
        with torch.autocast(weight.device.type, enabled=False):
            z: Tensor = self.encoder(pixels.to(weight.device, weight.dtype))
        return z.float().contiguous()

    def codes(self, pixels: Tensor) -> Tensor:
        """The codes of pictures [B, 3, H, W] in [-1, 1]: int64 [B, h, w], each in [0, codebook_size)."""
        return codes_of(self.z(pixels))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, h, w] -> fp32 pixels [B, 3, H, W], about in [-1, 1] (not clamped).

        Raises:
            ValueError: this tokenizer was built without its decoder.
        """
        if self.decoder is None:
            raise ValueError("this tokenizer was built without its decoder")
        weight = self.decoder.conv_in.weight
        signs = signs_of(codes.to(weight.device), self.config.code_bits)
        with torch.autocast(weight.device.type, enabled=False):
            pixels: Tensor = self.decoder(signs.to(weight.dtype))
        return pixels.float().contiguous()


def codes_of(z: Tensor) -> Tensor:
    """Codes int64 [B, h, w] from the encoder's output [B, z, h, w]. A bit is 1 where the number is above zero (zero
    itself counts as 0), and the first channel is the highest bit.
    """
    bits = z.shape[1]
    codes = torch.zeros_like(z[:, 0], dtype=torch.int64)
    for j in range(bits):
        codes = codes * 2 + (z[:, j] > 0)
    return codes


def signs_of(codes: Tensor, bits: int) -> Tensor:
    """The vectors that codes [B, h, w] stand for: fp32 [B, bits, h, w] of +1 and -1."""
    return torch.stack([((codes >> (bits - 1 - j)) & 1).float() * 2 - 1 for j in range(bits)], dim=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each behind a norm and an activation, beside the identity or a 1x1 convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), _conv(channels, out_channels)
        self.norm2, self.conv2 = _norm(out_channels), _conv(out_channels, out_channels)
        self.nin_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, out_channels, h, w]."""
        inner: Tensor = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        shortcut: Tensor = x if self.nin_shortcut is None else self.nin_shortcut(x)
        return shortcut + inner


class Attention(nn.Module):
    """One head of attention over all cells of a picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> the same shape."""
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        out: Tensor = self.proj_out(seen)
        return x + out


class Middle(nn.Module):
    """What stands at the smallest size, between encoder and codes and between codes and decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> the same shape."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Resample(nn.Module):
    """A 3x3 convolution that halves the sides (`up` False) or doubles them."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = _conv(channels, channels) if up else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, channels, h / 2 or 2 h, ...]."""
        # Down: a column of zeros on the right and a row below, none on the other sides.
        out: Tensor = self.conv(
            F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1))
        )
        return out


class Level(nn.Module):
    """The residual blocks of one size, and the step to the next size where there is one."""

    def __init__(self, channels: int, out_channels: int, blocks: int, *, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(out_channels if i else channels, out_channels) for i in range(blocks))
        self.downsample = Resample(out_channels, up=False) if down else None
        self.upsample = Resample(out_channels, up=True) if up else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, out_channels, h / 2, h or 2 h, ...]."""
        for layer in (*self.block, self.downsample, self.upsample):
            x = x if layer is None else layer(x)
        return x


class Encoder(nn.Module):
    """Pixels to the vectors whose signs are the codes."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths, last = (config.width, *config.encoder.widths), len(config.encoder.widths) - 1
        self.conv_in = _conv(3, config.width)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], blocks, down=i < last) for i, blocks in enumerate(config.encoder.blocks)
        )
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv(widths[-1], config.code_bits)
        self.quant_conv = nn.Conv2d(config.code_bits, config.code_bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, z, h, w]."""
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        out: Tensor = self.quant_conv(x)
        return out


class Decoder(nn.Module):
    """Vectors of signs to pixels."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths = (*config.decoder.widths, config.decoder.widths[-1])  # level i takes what level i + 1 gives
        self.post_quant_conv = nn.Conv2d(config.code_bits, config.code_bits, 1)
        self.conv_in = _conv(config.code_bits, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(widths[i + 1], widths[i], blocks, up=i > 0) for i, blocks in enumerate(config.decoder.blocks)
        )
        self.norm_out, self.conv_out = _norm(widths[0]), _conv(widths[0], 3)

    def forward(self, signs: Tensor) -> Tensor:
        """[B, z, h, w] -> [B, 3, H, W]."""
        x = self.mid(self.conv_in(self.post_quant_conv(signs)))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


def magvit_file(folder: Path) -> Path:
    """The file of weights in a tokenizer's own folder.

    Raises:
        UserError: there is none.
    """
    found = [folder / name for name in MAGVIT_FILES if (folder / name).exists()]
    if not found:
        raise UserError(
            f"{folder} holds none of {', '.join(MAGVIT_FILES)}; put the public magvitv2 folder (showlab/magvitv2) "
            "there, or a link to it."
        )
    return found[0]


def read_magvit(folder: Path, device: torch.device | str = "cpu", *, with_decoder: bool = True) -> Magvit:
    """A frozen tokenizer in eval mode, filled from its own folder.

    Raises:
        UserError: the file is missing or damaged, or a tensor is missing, unexpected or misshapen.
    """
    with open_weights(magvit_file(folder)) as weights:
        return fill_magvit(weights, device, with_decoder=with_decoder)


def fill_magvit(weights: Weights, device: torch.device | str, *, with_decoder: bool = True, under: str = "") -> Magvit:
    """Like `read_magvit`, from an opened file in which the tokenizer's names stand below the prefix `under`."""
    config = MagvitConfig.from_shapes(weights.shapes, str(weights.path), under)
    magvit = _unfilled(config, with_decoder)
    fill(magvit, weights, uniform(torch.float32, device), magvit_names(under, with_decoder=with_decoder))
    if torch.device(device).type == "cuda":
        to_channels_last(magvit)
    return magvit


def identity_of_magvit(weights: Weights, config: MagvitConfig) -> str:
    """A checksum of what makes codes of pictures: the encoder's tensors in an opened file, and the sizes."""
    keys = {key: key for key in weights.shapes if key.startswith("encoder.")}
    return identity_of_tensors(weights, keys, config)


def empty_magvit(config: MagvitConfig, device: torch.device | str, *, with_decoder: bool = True) -> Magvit:
    """A frozen tokenizer in eval mode whose weights hold no particular numbers; no file is read."""
    magvit = _unfilled(config, with_decoder)
    fill(magvit, EmptyWeights(magvit), uniform(torch.float32, device))
    if torch.device(device).type == "cuda" or gpu_assumed():
        to_channels_last(magvit)
    return magvit


def check_magvit(folder: Path) -> MagvitConfig:
    """Read a tokenizer's folder strictly, names, shapes and numbers; its sizes.

    Raises:
        UserError: anything is missing, unexpected or misshapen, or a number is NaN or infinite.
    """
    path = magvit_file(folder)
    with open_weights(path) as weights:
        config = MagvitConfig.from_shapes(weights.shapes, str(path))
        check_fit(weights, (_unfilled(config, True), magvit_names()))
    check_finite(path)
    return config


def _unfilled(config: MagvitConfig, with_decoder: bool) -> Magvit:
    with torch.device("meta"):
        return Magvit(config, with_decoder=with_decoder).requires_grad_(False).eval()


@torch.no_grad()
def picture_codes(magvit: Magvit, picture: Tensor) -> Tensor:
    """The codes of one picture, uint8 [H, W, 3] on any device: int64 [h, w] on the tokenizer's.

    A picture is encoded alone, so these are the same whatever else is in a pack. H and W are multiples of
    `magvit.downsample`.
    """
    device = magvit.encoder.conv_in.weight.device
    return magvit.codes(normalised(picture.to(device)[None].permute(0, 3, 1, 2)))[0]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=EPSILON)


def _conv(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)
