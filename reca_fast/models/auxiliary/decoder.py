"""The weak decoder: from the hidden states at a picture's positions to its latents or pixels.

A linear projection, then transposed convolutions that double the grid and halve the channels, a resize to the grid that
is wanted, and one convolution. It is weak on purpose: what it cannot make up has to be in the hidden states.

The last convolution begins with zeros, so a new decoder says the mean of what it learns, and its first gradients reach
itself alone.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.models.files import Weights
from reca_fast.models.parts.fresh import Fresh
from reca_fast.randomness import generator

GROUPS = 8
"""Of each GroupNorm; every width is a multiple of it."""


class Stage(nn.Module):
    """Twice the rows and columns."""

    def __init__(self, channels: int, after: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, after, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(GROUPS, after)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, after, 2h, 2w]."""
        return F.gelu(self.norm(self.up(x)))


class ReconstructionDecoder(Fresh):
    """The decoder.

    Args:
        hidden_size: width of the hidden states.
        width: channels after the projection, a multiple of GROUPS.
        stages: how often the grid is doubled.
        channels: of what is reconstructed.
    """

    def __init__(self, hidden_size: int, width: int, stages: int, channels: int) -> None:
        super().__init__()
        widths = stage_widths(width, stages)
        self.project = nn.Linear(hidden_size, width)
        self.stages = nn.ModuleList(Stage(a, b) for a, b in pairwise(widths))
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, rows: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Reconstruct pictures that have one grid and one size.

        Args:
            rows: [B * h * w, hidden_size], the hidden states of B pictures, each row by row.
            grid: (h, w), rows and columns of the hidden states of one picture.
            size: (H, W), rows and columns of what is reconstructed.

        Returns:
            [B, channels, H, W].
        """
        x = self.project(rows).unflatten(0, (-1, *grid) if len(rows) else (0, *grid)).permute(0, 3, 1, 2)
        for stage in self.stages:
            x = stage(x)
        if x.shape[2:] != size and len(x):
            down, across = (resampling(n, m, x) for n, m in zip(x.shape[2:], size, strict=True))
            x = down @ x @ across.T
        out: Tensor = self.out(x)
        return out

    def flops(self, grid: tuple[int, int], size: tuple[int, int]) -> float:
        """Multiply-adds, counted as 2, of the forward pass of one picture."""
        cells = math.prod(grid)
        total = cells * self.project.weight.numel()
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            total += cells * 4**number * stage.up.weight.numel()
        return 2.0 * (total + math.prod(size) * self.out.weight.numel())


def resampling(cells: int, wanted: int, like: Tensor) -> Tensor:
    """The matrix [wanted, cells] that resamples a row linearly, averaging where it shrinks, on the device and in the
    dtype of `like`. Products with it add in a fixed order, as torch's own interpolation on a GPU does not.
    """
    step = cells / wanted
    centre = (torch.arange(wanted, device=like.device) + 0.5) * step - 0.5
    distance = (torch.arange(cells, device=like.device) - centre[:, None]).abs()
    weights = (1 - distance / max(1.0, step)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def stage_widths(width: int, stages: int) -> list[int]:
    """Channels before each stage, and after the last: halved each time, in whole groups."""
    return [max(GROUPS, (width >> number) // GROUPS * GROUPS) for number in range(stages + 1)]


def parameters(hidden_size: int, width: int, stages: int, channels: int) -> int:
    """How many numbers a decoder of these sizes has."""
    widths = stage_widths(width, stages)
    ups = sum(16 * a * b + 3 * b for a, b in pairwise(widths))
    return (hidden_size + 1) * width + ups + (9 * widths[-1] + 1) * channels


def fitted_width(millions: float, hidden_size: int, stages: int, channels: int) -> int:
    """The largest width with which a decoder has at most so many million parameters; one group at least."""
    width = GROUPS
    while parameters(hidden_size, width + GROUPS, stages, channels) <= millions * 1e6:
        width += GROUPS
    return width


def needed_stages(pixels_per_token: int, pixels_per_cell: int) -> int:
    """How often a grid of tokens is doubled until it has the cells of a picture that is seen at the size at which it
    is reconstructed; once at least.
    """
    return max(1, math.ceil(math.log2(pixels_per_token / pixels_per_cell)))


class FreshDecoder(Weights):
    """The weights that every decoder of these sizes begins with, as if a file held them. No checkpoint has any."""

    def __init__(self, decoder: ReconstructionDecoder) -> None:
        self.path = Path("a new decoder")
        self.shapes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32

    def tensor(self, key: str, region: Sequence[slice] = ()) -> Tensor:
        shape, (layer, _, kind) = self.shapes[key], key.rpartition(".")
        if layer == "out" or kind == "bias":
            return torch.zeros(shape)[tuple(region)]
        if len(shape) == 1:
            return torch.ones(shape)[tuple(region)]
        # Of a transposed convolution of stride 2, a quarter of the kernel's 16 places reach one place of the output.
        inputs = shape[1] if len(shape) == 2 else 4 * shape[0]
        drawn: Tensor = torch.randn(shape, generator=generator("auxiliary decoder", key)) * (2 / inputs) ** 0.5
        return drawn[tuple(region)]

    def close(self) -> None:
        pass
