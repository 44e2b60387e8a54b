"""InternVL's vision tower, and the projector that turns its patches into tokens of the language model.

Both are frozen. A picture of any size is resized to the tower's square, as the authors do it: bilinearly, without a
filter and whatever its aspect ratio.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.kernels import Varlen, varlen_attention

from .config import OpenUniConfig, VitConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, counted from 0 to 1."""
PROJECTOR_EPS = 1e-5


class VitEmbeddings(nn.Module):
    """Patches as tokens, with a class token in front and a position for each."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, config.side**2 + 1, width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, side, side] -> [N, 1 + patches, width]."""
        patches = self.patch_embedding(pixels).flatten(2).mT
        tokens = torch.cat((self.class_embedding.to(patches.dtype).expand(len(patches), -1, -1), patches), dim=1)
        return tokens + self.position_embedding.to(patches.dtype)


class VitAttention(nn.Module):
    """Full attention of a picture's tokens."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor, segments: Varlen, backend: str) -> Tensor:
        """[N, width] -> [N, width]."""
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv(tokens).chunk(3, dim=-1))
        out: Tensor = self.proj(varlen_attention(q, k, v, segments, backend=backend).flatten(1))
        return out


class VitMLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, width] -> [N, width]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class VitLayer(nn.Module):
    """Attention and MLP, each behind a norm and before a scale per channel."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = VitAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VitMLP(config)
        self.ls1, self.ls2 = (nn.Parameter(torch.empty(config.hidden_size)) for _ in range(2))

    def forward(self, tokens: Tensor, segments: Varlen, backend: str) -> Tensor:
        """[N, width] -> [N, width]."""
        attended = self.attn(self.norm1(tokens), segments, backend)
        tokens = torch.addcmul(tokens, attended, self.ls1.to(attended.dtype))
        fed = self.mlp(self.norm2(tokens))
        return torch.addcmul(tokens, fed, self.ls2.to(fed.dtype))


class InternVit(nn.Module):
    """The tower and the projector, from one picture to tokens of the language model.

    Args:
        config: sizes. Layers behind the one that is used are built, for they stand in the file, and never run.
    """

    def __init__(self, config: OpenUniConfig) -> None:
        super().__init__()
        self.config = config
        joined = config.vit.hidden_size * config.joined**2
        self.embeddings = VitEmbeddings(config.vit)
        self.layers = nn.ModuleList(VitLayer(config.vit) for _ in range(config.vit.num_hidden_layers))
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(joined, eps=PROJECTOR_EPS),
            nn.Linear(joined, config.llm.hidden_size),
            nn.GELU(),
            nn.Linear(config.llm.hidden_size, config.llm.hidden_size),
        )

    def forward(self, pixels: Tensor, backend: str) -> Tensor:
        """The tokens of one picture.

        Args:
            pixels: fp32 [3, H, W] in [-1, 1].
            backend: of the attention, from `reca_fast.kernels.choose_backend`.

        Returns:
            [config.picture_tokens, width of the language model], in the dtype of the arithmetic.
        """
        return self.together(pixels[None], backend)[0]

    def together(self, pixels: Tensor, backend: str) -> Tensor:
        """The same of N pictures of one size at once: [N, 3, H, W] -> [N, picture_tokens, width]."""
        vit = self.config.vit
        channels = zip(pixels.unbind(1), MEAN, STD, strict=True)
        normed = torch.stack([((x + 1) / 2 - mean) / std for x, mean, std in channels], dim=1)
        size = (vit.image_size, vit.image_size)
        resized = F.interpolate(normed, size=size, mode="bilinear", align_corners=False)
        if not torch.is_autocast_enabled(pixels.device.type):
            resized = resized.to(self.embeddings.patch_embedding.weight.dtype)
        tokens = self.embeddings(resized)
        pictures, rows = tokens.shape[:2]
        # Made where they are used: nothing waits.
        ends = torch.arange(pictures + 1, dtype=torch.int32, device=tokens.device) * rows
        segments = Varlen(ends, ends, rows, rows, False)
        tokens = tokens.flatten(0, 1)
        for layer in self.layers[: self.config.vit_layers]:
            tokens = layer(tokens, segments, backend)
        patches = tokens.unflatten(0, (pictures, rows))[:, 1:].unflatten(1, (vit.side, vit.side))
        out: Tensor = self.mlp1(join_patches(patches, self.config.joined, self.config.ps_version))
        return out


def join_patches(patches: Tensor, side: int, version: str) -> Tensor:
    """Join squares of patches to one token each (InternVL's pixel shuffle).

    Args:
        patches: [..., rows, columns, C].
        side: of a square, in patches.
        version: v2 gives the squares row by row, v1 column by column.

    Returns:
        [..., rows / side * columns / side, side**2 * C]. A token holds its square's patches row by row.
    """
    squares = patches.unflatten(-2, (-1, side)).unflatten(-4, (-1, side))  # [..., R, side, K, side, C]
    squares = squares.transpose(-4, -3)  # [..., R, K, side, side, C]
    if version == "v1":
        squares = squares.transpose(-5, -4)
    joined: Tensor = squares.flatten(-3).flatten(-3, -2)
    return joined
