"""The denoising MLP: what noise lies on a token's latents, given what the decoder says about the token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.kernels import adaln_modulate, gated_residual, mar_residual_block
from reca_fast.models.parts.layer_norm import LayerNorm
from reca_fast.models.parts.timestep import TimestepEmbedder

from .diffusion import STEPS
from .mar import EPS


class DenoiserBlock(nn.Module):
    """A residual block whose norm and output are modulated by a condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = LayerNorm(width, EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, a: Tensor, condition: Tensor) -> Tensor:
        """Run the block.

        Args:
            a: [N, W].
            condition: [N, W], behind the SiLU that all blocks begin with: it is computed once for all of them.
        """
        modulation = self.adaLN_modulation[1](condition)
        norm, first, last = self.in_ln, self.mlp[0], self.mlp[2]
        if len(a) and all(map(_is_plain, (self.mlp, first, last))):
            out: Tensor = mar_residual_block(
                *(a, modulation, norm.weight, norm.bias, first.weight, first.bias, last.weight, last.bias), eps=EPS
            )
            return out
        shift, scale, gate = modulation.chunk(3, dim=-1)
        if not len(a):  # a pack without targets; kernels are not launched for nothing, but every weight takes part
            nothing: Tensor = a + gate * self.mlp(norm(a) * (1 + scale) + shift)
            return nothing
        update = self.mlp(adaln_modulate(a, shift, scale, weight=norm.weight, bias=norm.bias, eps=EPS))
        residual: Tensor = gated_residual(a, gate, update)
        return residual


def _is_plain(module: nn.Module) -> bool:
    """Whether no memory lever has put another computation in the place of this layer's."""
    return type(module) in (nn.Linear, nn.Sequential) and "forward" not in vars(module)


class FinalLayer(nn.Module):
    """A modulated norm without weights, and the projection to the prediction."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, a: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation[1](condition).chunk(2, dim=-1)
        if len(a):
            normed = adaln_modulate(a, shift, scale, eps=EPS)
        else:
            normed = F.layer_norm(a, a.shape[-1:], eps=EPS) * (1 + scale) + shift
        out: Tensor = self.linear(normed)
        return out


class Denoiser(nn.Module):
    """Noise and variance of noisy latents.

    Args:
        token_dim: C, numbers of a token's latents.
        condition_dim: Dd, width of the decoder.
        width: W.
        depth: residual blocks.
    """

    def __init__(self, token_dim: int, condition_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedder(width)
        self.cond_embed = nn.Linear(condition_dim, width)
        self.input_proj = nn.Linear(token_dim, width)
        self.res_blocks = nn.ModuleList(DenoiserBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * token_dim)

    def forward(self, x_t: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            x_t: [R * N, C], R noisy copies of N tokens: all tokens, then all of them again.
            timesteps: int64 [R * N] in 0..999, or [1] for all.
            z: [N, Dd], one row for each token: it is projected once for all copies.

        Returns:
            [R * N, 2 C]: the noise, and where the variance lies between its bounds.
        """
        copies = len(x_t) // len(z) if len(z) else 1
        condition = F.silu(self._embedded(timesteps) + self.cond_embed(z).repeat(copies, 1))
        if not torch.is_autocast_enabled(x_t.device.type):  # autocast casts x_t by itself
            x_t = x_t.to(self.input_proj.weight.dtype)
        a = self.input_proj(x_t)
        for block in self.res_blocks:
            a = block(a, condition)
        out: Tensor = self.final_layer(a, condition)
        return out

    def _embedded(self, timesteps: Tensor) -> Tensor:
        """What each row gets of its timestep, [N, W]. Of more rows than there are timesteps, each of these is embedded
        once, for all rows that have it.
        """
        if len(timesteps) <= STEPS:
            embedded: Tensor = self.time_embed(timesteps)
            return embedded
        return F.embedding(timesteps, self.time_embed(torch.arange(STEPS, device=timesteps.device)))
