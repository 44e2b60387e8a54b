"""OpenAI's CLIP vision tower up to the layer whose output vision-language models use, and the pixels that it takes.

Letters in shapes: B pictures; S the side of the square pictures that the tower takes; P patches of a picture.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.data.images import normalised
from reca_fast.errors import UserError
from reca_fast.models.files import (
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

from .clip_vision_config import ClipVisionConfig

CLIP_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names that its file of weights may have in a folder of its own; the first that is there counts."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1], as CLIP was trained."""


def clip_names(config: ClipVisionConfig, under: str = "") -> NameTable:
    """The public names of the tensors of `ClipVision`, below the prefix `under`. What else a file of CLIP holds, the
    text tower and the layers behind the selected one, is left alone.
    """
    layer = "vision_model.encoder.layers.{i}."
    return NameTable(
        (
            ("class_embedding", "vision_model.embeddings.class_embedding"),
            ("{part:patch_embedding|position_embedding}.weight", "vision_model.embeddings.{part}.weight"),
            ("pre_norm.{kind}", "vision_model.pre_layrnorm.{kind}"),
            ("layers.{i}.norm{n:1|2}.{kind}", layer + "layer_norm{n}.{kind}"),
            ("layers.{i}.{part:q_proj|k_proj|v_proj|out_proj}.{kind}", layer + "self_attn.{part}.{kind}"),
            ("layers.{i}.{part:fc1|fc2}.{kind}", layer + "mlp.{part}.{kind}"),
        ),
        under="vision_model.",
        others=(
            "vision_model.post_layernorm.",
            *(f"vision_model.encoder.layers.{i}." for i in range(config.layers, config.num_hidden_layers)),
        ),
        ignored=frozenset({"vision_model.embeddings.position_ids"}),
    ).within(file=under)


class ClipLayer(nn.Module):
    """Attention among all patches of a picture, then an MLP, each behind a norm."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        width, wide = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1, self.fc2 = nn.Linear(width, wide), nn.Linear(wide, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1 + P, hidden_size] -> the same shape."""
        normed = self.norm1(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        inner = self.fc1(self.norm2(x))
        out: Tensor = self.fc2(inner * torch.sigmoid(1.702 * inner))
        return x + out


class ClipVision(nn.Module):
    """The tower from pixels to the features of the selected layer, without any norm behind it."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(1 + config.num_patches, config.hidden_size)
        self.pre_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """The features of pictures.

        Args:
            pixels: [B, 3, S, S], of any dtype, normalised as the model that uses the tower wants it.

        Returns:
            [B, P, hidden_size] in the dtype of the weights, patches row by row; the class token's row is left out.
        """
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x: Tensor = self.pre_norm(torch.cat((first, patches), dim=1) + self.position_embedding.weight)
        for layer in self.layers:
            x = layer(x)
        return x[:, 1:]


def clip_file(folder: Path) -> Path:
    """The file of weights in a CLIP folder.

    Raises:
        UserError: there is none.
    """
    found = [folder / name for name in CLIP_FILES if (folder / name).exists()]
    if not found:
        raise UserError(
            f"{folder} holds none of {', '.join(CLIP_FILES)}; put the public folder openai/clip-vit-large-patch14-336 "
            "there, or a link to it."
        )
    return found[0]


def read_clip_vision(
    folder: Path, config: ClipVisionConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ClipVision:
    """A frozen tower in eval mode, filled from a CLIP folder.

    Raises:
        UserError: the file is missing or damaged, or a tensor is missing, unexpected or misshapen.
    """
    with open_weights(clip_file(folder)) as weights:
        return fill_clip_vision(weights, config, device, dtype)


def fill_clip_vision(
    weights: Weights,
    config: ClipVisionConfig,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    *,
    under: str = "",
) -> ClipVision:
    """Like `read_clip_vision`, from an opened file in which the tower's names stand below the prefix `under`."""
    tower = _unfilled(config)
    fill(tower, weights, uniform(dtype, device), clip_names(config, under))
    return tower


def identity_of_clip_vision(weights: Weights, config: ClipVisionConfig) -> str:
    """A checksum of the tower's tensors in an opened file of CLIP, and of its sizes."""
    names = clip_names(config)
    keys = {key: key for key in weights.shapes if names.has(key)}
    return identity_of_tensors(weights, keys, config)


def empty_clip_vision(
    config: ClipVisionConfig, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> ClipVision:
    """A frozen tower in eval mode whose weights hold no particular numbers; no file is read."""
    tower = _unfilled(config)
    fill(tower, EmptyWeights(tower), uniform(dtype, device))
    return tower


def check_clip_vision(folder: Path) -> ClipVisionConfig:
    """Read a CLIP folder strictly, names, shapes and numbers of the part that is used; its sizes.

    Raises:
        UserError: anything is missing, unexpected or misshapen, or a number is NaN or infinite.
    """
    config, path = ClipVisionConfig.from_folder(folder), clip_file(folder)
    with open_weights(path) as weights:
        check_fit(weights, (_unfilled(config), clip_names(config)))
    check_finite(path)
    return config


def _unfilled(config: ClipVisionConfig) -> ClipVision:
    with torch.device("meta"):
        return ClipVision(config).requires_grad_(False).eval()


def bilinear(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels [B, 3, H, W] resized to size = (height, width) by plain bilinear interpolation, without antialiasing."""
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=False)


def plain_pixels(picture: Tensor, side: int) -> Tensor:
    """A picture as RECA shows it to the tower of Show-o: in [-1, 1], without CLIP's own mean and deviation.

    Args:
        picture: uint8 [H, W, 3].
        side: S; a picture of another size is squeezed to the square by `bilinear`.

    Returns:
        fp32 [1, 3, S, S] on the picture's device.
    """
    return bilinear(normalised(picture[None].permute(0, 3, 1, 2)), (side, side))


def processed_pixels(picture: Tensor, side: int) -> Tensor:
    """A picture as CLIP itself takes it: the shorter side brought to S, the middle cut out, CLIP's mean and deviation.

    Args:
        picture: uint8 [H, W, 3].
        side: S.

    Returns:
        fp32 [1, 3, S, S] on the picture's device.
    """
    planes = picture[None].permute(0, 3, 1, 2).float()
    height, width = planes.shape[2:]
    short = min(height, width)
    if short != side:
        # Across, then down, to whole levels each time, as Pillow does it. In fp32: on a GPU torch resizes no uint8.
        for size in ((height, side * width // short), (side * height // short, side * width // short)):
            planes = F.interpolate(planes, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (planes.shape[2] - side) // 2, (planes.shape[3] - side) // 2
    unit = planes[:, :, top : top + side, left : left + side] / 255
    of_colour = zip(unit.unbind(1), CLIP_MEAN, CLIP_STD, strict=True)  # numbers, for which no device is waited
    return torch.stack([(plane - mean) / std for plane, mean, std in of_colour], 1)
