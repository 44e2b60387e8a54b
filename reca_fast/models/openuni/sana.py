"""SANA, the transformer that predicts velocities of latents: linear attention, and convolutions that alone know places.

The latent cells of all targets of a pack lie behind one another, row by row, as tokens [T, D]; targets of one size are
neighbours and make a group. A group is computed at once, in the order of memory that both its products (tokens) and its
depthwise convolutions (channels last) like best: nothing is turned over between the two. A convolution of 1 x 1 is a
linear layer here, though the file holds it as a convolution.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.kernels import Varlen, swiglu, varlen_attention
from reca_fast.models.parts.rms_norm import RMSNorm
from reca_fast.models.parts.timestep import TimestepEmbedder

from .config import SanaConfig
from .depthwise import depthwise_conv

NORM_EPS = 1e-5
"""Of the norms with a weight: of the context, and of queries and keys."""
ATTENTION_EPS = 1e-15
"""Added to the sum of a query's weights."""


class Group(NamedTuple):
    """Targets of one size that follow each other in a pack."""

    pictures: int
    rows: int  # of latent cells in a picture
    columns: int
    cross: Varlen  # each picture's tokens and the rows of its context

    @property
    def tokens(self) -> int:
        """Latent cells of all these targets."""
        return self.pictures * self.rows * self.columns

    def to(self, device: torch.device | str) -> "Group":
        """The same with its offsets on a device."""
        return self._replace(cross=self.cross.to(device))


def make_group(pictures: int, rows: int, columns: int, context: int) -> Group:
    """The group of so many targets of rows x columns cells, with so many rows of context each."""
    cross = Varlen.from_lengths([rows * columns] * pictures, [context] * pictures, causal=False)
    return Group(pictures, rows, columns, cross)


def _normed(x: Tensor, eps: float) -> Tensor:
    """Rows with mean 0 and variance 1, in the dtype of x also where autocast would widen them."""
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, x.shape[-1:], eps=eps)


class LinearAttention(nn.Module):
    """Attention of relu(q) and relu(k) without a softmax: its cost grows with the tokens, not with their square."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = config.attention_head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=config.attention_bias) for _ in range(3))
        self.norm_q, self.norm_k = (RMSNorm(width, NORM_EPS) if config.qk_norm else nn.Identity() for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[pictures, tokens, D] -> the same shape. Sums over tokens are fp32 (or wider), whatever autocast says."""
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(x)), self.to_v(x)
        wide = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = (
                each.to(wide).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for each in (F.relu(q), F.relu(k), v)
            )
            summed = k.sum(2)[..., None]  # [pictures, heads, head_dim, 1]
            out = (q @ (k.mT @ v)) / (q @ summed + ATTENTION_EPS)
        attended: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2).to(x.dtype))
        return attended


class CrossAttention(nn.Module):
    """Attention of a picture's tokens to its context."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.cross_attention_head_dim
        inner = config.num_cross_attention_heads * self.head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.norm_q, self.norm_k = (RMSNorm(inner, NORM_EPS) if config.qk_norm else nn.Identity() for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x: Tensor, context: Tensor, segments: Varlen, backend: str) -> Tensor:
        """Tokens [N, D], context [K, D] -> [N, D]."""
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(context)), self.to_v(context)
        q, k, v = (each.unflatten(-1, (-1, self.head_dim)) for each in (q, k, v))
        out: Tensor = self.to_out[0](varlen_attention(q, k, v, segments, backend=backend).flatten(1))
        return out


class GatedConv(nn.Module):
    """The feed-forward part: to five times the channels, a depthwise 3 x 3 convolution, a gate, and back."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        width, channels = config.hidden_size, config.mlp_channels
        self.conv_inverted = nn.Linear(width, 2 * channels)
        self.conv_depth = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.conv_point = nn.Linear(channels, width, bias=False)

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """[pictures, rows * columns, D] -> the same shape."""
        wide = F.silu(self.conv_inverted(x))
        value, gate = depthwise_conv(wide, self.conv_depth, rows, columns).chunk(2, dim=-1)
        out: Tensor = self.conv_point(swiglu(gate, value))
        return out


class SanaBlock(nn.Module):
    """Linear attention, cross attention and the gated convolution; the first and the last are scaled and shifted by
    what the time says.
    """

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.scale_shift_table = nn.Parameter(torch.empty(6, config.hidden_size))
        self.attn1 = LinearAttention(config)
        self.attn2 = CrossAttention(config)
        self.ff = GatedConv(config)

    def forward(
        self, hidden_states: Tensor, context: Tensor, modulation: Tensor, groups: Sequence[Group], backend: str
    ) -> Tensor:
        """Run the block.

        Args:
            hidden_states: [T, D], the tokens of all groups.
            context: [K, D], the same number of rows for each picture.
            modulation: [pictures, 6 D], what the time of each says.
            groups: the pack's targets.
            backend: attention backend, as `reca_fast.kernels.choose_backend` names it.

        Returns:
            [T, D].
        """
        dtype = hidden_states.dtype
        table = (self.scale_shift_table + modulation.unflatten(1, (6, -1))).to(dtype).unsqueeze(2)  # [M, 6, 1, D]
        pictures = [group.pictures for group in groups]
        rows = len(context) // sum(pictures)
        parts = zip(
            groups,
            hidden_states.split([group.tokens for group in groups]),
            context.split([rows * count for count in pictures]),
            table.split(pictures),
            strict=True,
        )
        out = [self._of_group(*part, backend) for part in parts]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _of_group(self, group: Group, tokens: Tensor, context: Tensor, table: Tensor, backend: str) -> Tensor:
        """[group.tokens, D] -> the same shape; table [group.pictures, 6, 1, D]."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = table.unbind(1)
        x = tokens.unflatten(0, (group.pictures, -1))
        x = torch.addcmul(x, gate, self.attn1(torch.addcmul(shift, _normed(x, self.eps), 1 + scale)))
        x = x + self.attn2(x.flatten(0, 1), context, group.cross, backend).view(x.shape)
        fed = self.ff(torch.addcmul(shift_ff, _normed(x, self.eps), 1 + scale_ff), group.rows, group.columns)
        return torch.addcmul(x, gate_ff, fed).flatten(0, 1)


class Sana(nn.Module):
    """The blocks, and what is before and behind them.

    Args:
        config: sizes.
    """

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        width, self.config = config.hidden_size, config
        self.patch_embed = nn.Linear(config.in_channels, width)
        self.time_embedder = TimestepEmbedder(width)
        self.time_linear = nn.Linear(width, 6 * width)
        self.caption_projection = nn.Sequential(
            nn.Linear(config.caption_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.caption_norm = RMSNorm(width, NORM_EPS)
        self.blocks = nn.ModuleList(SanaBlock(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.proj_out = nn.Linear(width, config.out_channels)

    def forward(self, x_t: Tensor, context: Tensor, timesteps: Tensor, groups: Sequence[Group], backend: str) -> Tensor:
        """Predict the velocity of every latent cell.

        Args:
            x_t: [T, C], the noisy latent cells of all groups.
            context: [pictures * Q, caption_channels].
            timesteps: [pictures], from 0 (data) to 1000 (noise).
            groups: the pack's targets.
            backend: attention backend, as `reca_fast.kernels.choose_backend` names it.

        Returns:
            [T, C].
        """
        time = self.time_embedder(timesteps * self.config.timestep_scale)
        modulation = self.time_linear(F.silu(time))
        context = self.caption_norm(self.caption_projection(context))
        if not torch.is_autocast_enabled(x_t.device.type):  # autocast casts by itself
            x_t = x_t.to(self.patch_embed.weight.dtype)
        hidden_states = self.patch_embed(x_t)
        for block in self.blocks:
            hidden_states = block(hidden_states, context, modulation, groups, backend)
        table = (self.scale_shift_table + time[:, None]).to(hidden_states.dtype).unsqueeze(2)  # [M, 2, 1, D]
        normed = _normed(hidden_states, 1e-6)
        parts = zip(
            groups,
            normed.split([group.tokens for group in groups]),
            table.split([group.pictures for group in groups]),
            strict=True,
        )
        out = [
            torch.addcmul(each[:, 0], x.unflatten(0, (group.pictures, -1)), 1 + each[:, 1]).flatten(0, 1)
            for group, x, each in parts
        ]
        velocity: Tensor = self.proj_out(out[0] if len(out) == 1 else torch.cat(out))
        return velocity
