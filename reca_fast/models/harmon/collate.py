"""From the samples of a pack to its batch, with every random number of the step."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.data.inputs import Size
from reca_fast.sample import I2T, T2I, Encoded, Sample

from .batch import LATENTS, HarmonBatch
from .config import HarmonConfig, MarConfig
from .diffusion import STEPS
from .layout import Piece, build_layout
from .positions import Grid
from .tokenizer import HarmonTokenizer

MEAN, DEVIATION = 1.0, 0.25
"""Of the normal distribution that the hidden share comes from, cut off below `mask_ratio_min` and above 1."""


class Draws(NamedTuple):
    """The random numbers of a step, but for the timesteps, whose number depends on them."""

    hidden: list[Tensor]  # bool [L] of each target
    seed: int  # of the noise


def hidden_share(uniform: float, least: float) -> float:
    """The share of a pack's tokens that are hidden, from a number in [0, 1): the authors' truncated normal."""

    def below(share: float) -> float:
        return 0.5 * math.erfc((MEAN - share) / DEVIATION / math.sqrt(2))

    point = below(least) + uniform * (below(1.0) - below(least))
    share = MEAN + DEVIATION * float(torch.special.ndtri(torch.tensor(point, dtype=torch.float64)))
    return min(1.0, max(least, share))


def draw_masks(grids: Sequence[Grid], config: MarConfig, draw: torch.Generator) -> Draws:
    """One share for the whole pack, as the authors have one for a batch, and an order for each target: the first tokens
    of it are hidden. They are drawn in a fixed order, which a change would break for every run that is resumed.
    """
    share = hidden_share(float(torch.rand((), generator=draw, dtype=torch.float64)), config.mask_ratio_min)
    hidden = []
    for rows, columns in grids:
        tokens = rows * columns
        mask = torch.zeros(tokens, dtype=torch.bool)
        mask[torch.randperm(tokens, generator=draw)[: math.ceil(tokens * share)]] = True
        hidden.append(mask)
    return Draws(hidden, int(torch.randint(2**62, (), generator=draw)))


def collate(
    samples: Sequence[Sample], config: HarmonConfig, tokenizer: HarmonTokenizer, draw: torch.Generator
) -> HarmonBatch:
    """The training batch of a pack. A sample that draws a picture without having a condition of its own, and not from a
    caption alone, has the picture itself as its condition.
    """
    mar = config.mar
    grids = [None if s.target_size is None else grid_of(s.target_size, mar.stride) for s in samples]
    draws = draw_masks([grid for grid in grids if grid is not None], mar, draw)
    masks, pieces = iter(draws.hidden), []
    for sample, target in zip(samples, grids, strict=True):
        same = target is not None and sample.condition_size is None and set(sample.tasks) != {T2I}
        own = None if sample.condition_size is None else grid_of(sample.condition_size, mar.stride)
        condition = target if same else own
        pieces.append(
            Piece(
                prompt=tokenizer.prompt(sample.text, seen=condition is not None),
                condition=condition,
                target=target,
                same=same,
                hidden=None if target is None else next(masks),
                task=next((task for task in sample.tasks if task != I2T), I2T),
            )
        )
    layout = build_layout(pieces, mar.buffer_size)
    rows = mar.diffusion_batch_mul * sum(layout.predicted.values())
    return HarmonBatch(
        encoder=layout.encoder,
        language=layout.language,
        decoder=layout.decoder,
        predicted=layout.predicted,
        num_tokens=sum(len(piece.prompt) + slots(piece.condition, mar) + slots(piece.target, mar) for piece in pieces),
        timesteps=torch.randint(STEPS, (rows,), generator=draw),
        noise_seed=draws.seed,
        pictures=tuple(_picture(samples[i], target or pieces[i].same) for i, target in layout.pictures),
    )


def grid_of(size: Size, stride: int) -> Grid:
    """Rows and columns of tokens of a picture of this width and height."""
    return size[1] // stride, size[0] // stride


def slots(grid: Grid | None, config: MarConfig) -> int:
    """Rows that a whole picture takes with its buffers; 0 for none."""
    return 0 if grid is None else grid[0] * grid[1] + config.buffer_size


def _picture(sample: Sample, target: bool) -> Tensor:
    """Pixels, or the latents that a cache holds in their place."""
    pixels: Tensor | None = sample.target if target else sample.condition
    encoded: Encoded | None = sample.encoded_target if target else sample.encoded_condition
    if encoded is not None:
        return encoded.tensors[LATENTS]
    assert pixels is not None, "a sample has the pictures that were planned for it"
    return pixels
