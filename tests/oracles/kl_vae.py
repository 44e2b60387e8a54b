"""The KL VAE of FLUX as its definition says it, function by function, on tensors under their public names."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PlainVAE:
    """Pictures [3, H, W] in [-1, 1] to moments [2z, h, w], and z [z, h, w] to pictures, in the dtype of the tensors."""

    tensors: Mapping[str, Tensor]
    levels: int
    blocks: int
    groups: int

    def encode(self, picture: Tensor) -> Tensor:
        x = self._conv("encoder.conv_in", picture[None])
        for level in range(self.levels):
            for block in range(self.blocks):
                x = self._residual(f"encoder.down.{level}.block.{block}", x)
            if level + 1 < self.levels:
                x = self._conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        x = self._middle("encoder", x)
        return self._conv("encoder.conv_out", self._silu_norm("encoder.norm_out", x))[0]

    def decode(self, z: Tensor) -> Tensor:
        x = self._middle("decoder", self._conv("decoder.conv_in", z[None]))
        for level in reversed(range(self.levels)):
            for block in range(self.blocks + 1):
                x = self._residual(f"decoder.up.{level}.block.{block}", x)
            if level:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self._conv(f"decoder.up.{level}.upsample.conv", x)
        return self._conv("decoder.conv_out", self._silu_norm("decoder.norm_out", x))[0]

    def _conv(self, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        around = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, weight, self.tensors[f"{name}.bias"], stride, around)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (self.groups, -1))
        away = grouped - grouped.mean((2, 3, 4), keepdim=True)
        normed = (away / (away.square().mean((2, 3, 4), keepdim=True) + 1e-6).sqrt()).flatten(1, 2)
        weight, bias = (self.tensors[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return normed * weight + bias

    def _silu_norm(self, name: str, x: Tensor) -> Tensor:
        x = self._norm(name, x)
        return x * torch.sigmoid(x)

    def _residual(self, name: str, x: Tensor) -> Tensor:
        inner = self._conv(f"{name}.conv1", self._silu_norm(f"{name}.norm1", x))
        inner = self._conv(f"{name}.conv2", self._silu_norm(f"{name}.norm2", inner))
        return inner + (self._conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.tensors else x)

    def _middle(self, side: str, x: Tensor) -> Tensor:
        x = self._residual(f"{side}.mid.block_1", x)
        name, normed = f"{side}.mid.attn_1", self._norm(f"{side}.mid.attn_1.norm", x)
        q, k, v = (self._conv(f"{name}.{part}", normed).flatten(2)[0].T for part in "qkv")
        seen = (q @ k.T / q.shape[1] ** 0.5).softmax(-1) @ v
        x = x + self._conv(f"{name}.proj_out", seen.T.reshape(x.shape))
        return self._residual(f"{side}.mid.block_2", x)
