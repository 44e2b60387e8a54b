"""MAR's transformer blocks over packed rows, and the two stacks that are made of them.

Letters in shapes: N rows, T tokens of all pictures, D the width of a stack, C numbers of a token's latents, nb
buffers of a picture.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.kernels import Varlen, varlen_attention
from reca_fast.models.parts.layer_norm import LayerNorm

from .config import MarConfig
from .positions import Grid, resampled

EPS = 1e-6


class Attention(nn.Module):
    """Attention of the rows of each segment to one another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, segments: Varlen, backend: str) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        out: Tensor = self.proj(varlen_attention(q, k, v, segments, backend=backend).flatten(1))
        return out


class Mlp(nn.Module):
    """[N, D] -> [N, D], row by row."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class MarBlock(nn.Module):
    """One pre-norm block, its tensors named as in timm's vision transformer. It has no dropout: docs/models/harmon.md,
    "What differs", says why.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, EPS)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width, EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, segments: Varlen, backend: str) -> Tensor:
        """[N, D] -> [N, D]."""
        # The sums go into the products' own memory: nothing else needs a projection's output.
        x = self.attn(self.norm1(x), segments, backend).add_(x)
        out: Tensor = self.mlp(self.norm2(x)).add_(x)
        return out


class Mar(nn.Module):
    """The tensors of MAR but its denoiser, under their public names, and what the network makes of them.

    Args:
        config: sizes.
    """

    def __init__(self, config: MarConfig) -> None:
        super().__init__()
        encoder, decoder, cells = config.encoder_embed_dim, config.decoder_embed_dim, config.side**2
        self.buffers_per_picture = config.buffer_size
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder))
        self.class_emb = nn.Embedding(config.class_num, encoder).requires_grad_(False)  # nothing reads it
        self.z_proj = nn.Linear(config.token_dim, encoder)
        self.z_proj_ln = LayerNorm(encoder, EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, config.buffer_size + cells, encoder))
        self.encoder_blocks = nn.ModuleList(
            MarBlock(encoder, config.encoder_num_heads, config.mlp_ratio) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = LayerNorm(encoder, EPS)
        self.decoder_embed = nn.Linear(encoder, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, config.buffer_size + cells, decoder))
        self.decoder_blocks = nn.ModuleList(
            MarBlock(decoder, config.decoder_num_heads, config.mlp_ratio) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = LayerNorm(decoder, EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, cells, decoder))

    def embed(self, latents: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
        """The encoder's input before tokens are dropped.

        Args:
            latents: [T, C], the tokens of all pictures, row by row.
            grids: of the pictures, in their order.

        Returns:
            The buffers [nb, D], which are the same in every picture, and the tokens [T, D].
        """
        table = self.encoder_pos_embed_learned[0]
        buffers = self.z_proj_ln(self.fake_latent + table[: self.buffers_per_picture])
        tokens: Tensor = self.z_proj(latents.to(self.z_proj.weight.dtype))
        return buffers, self.z_proj_ln(tokens + _by_grid(table[self.buffers_per_picture :], grids))

    def encode(self, rows: Tensor, segments: Varlen, backend: str) -> Tensor:
        """The encoder: packed rows [N, D], buffers and tokens of each pass -> [N, D]."""
        for block in self.encoder_blocks:
            rows = block(rows, segments, backend)
        out: Tensor = self.encoder_norm(rows)
        return out

    def place(self, seen: Tensor, hidden: int, order: Tensor, grids: Sequence[Grid]) -> Tensor:
        """The decoder's input: a row for every buffer and every token of each target.

        Args:
            seen: [M, D of the encoder], rows that went through the encoder and the language model.
            hidden: how many tokens did not; the mask token stands for each.
            order: int64 [M + hidden], which row of [seen ; hidden] stands in each place.
            grids: of the targets.

        Returns:
            [M + hidden, D].
        """
        embedded = self.decoder_embed(seen)
        mask = self.mask_token[0].to(embedded.dtype).expand(hidden, -1)
        table, nb = self.decoder_pos_embed_learned[0], self.buffers_per_picture
        positions = {grid: torch.cat((table[:nb], resampled(table[nb:], grid))) for grid in set(grids)}
        places = torch.cat([positions[grid] for grid in grids]) if grids else table[:0]
        return torch.cat((embedded, mask)).index_select(0, order) + places

    def decode(self, rows: Tensor, segments: Varlen, backend: str) -> Tensor:
        """The decoder's blocks: [N, D] -> [N, D], before the norm."""
        for block in self.decoder_blocks:
            rows = block(rows, segments, backend)
        return rows

    def finish(self, rows: Tensor, tokens: Tensor, grids: Sequence[Grid]) -> Tensor:
        """What the denoiser is conditioned on, z.

        Args:
            rows: [N, D], what the decoder's blocks gave for these tokens.
            tokens: int64 [N], their numbers among the tokens of all targets.
            grids: of the targets.
        """
        places = _by_grid(self.diffusion_pos_embed_learned[0], grids).index_select(0, tokens)
        z: Tensor = self.decoder_norm(rows) + places
        return z


def _by_grid(table: Tensor, grids: Sequence[Grid]) -> Tensor:
    """The rows of a position table for the tokens of all pictures, [T, D]."""
    by_grid = {grid: resampled(table, grid) for grid in dict.fromkeys(grids)}
    return torch.cat([by_grid[grid] for grid in grids]) if grids else table[:0]
