"""How well pictures survive the way through the condition and back. Every picture has a seed of its own, so numbers
compare across checkpoints and batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca_fast.config import SamplingConfig
from reca_fast.models import Adapter
from reca_fast.sample import Sample


@dataclass(frozen=True)
class Reconstruction:
    """One picture and what came back; uint8 [H, W, 3] both."""

    key: str
    original: Tensor
    drawn: Tensor

    @property
    def mse(self) -> float:
        """Mean squared error of pixels in [0, 1]."""
        return ((self.original.float() - self.drawn.float()) / 255).square().mean().item()


def reconstruct_all(
    adapter: Adapter, samples: Sequence[Sample], sampling: SamplingConfig, batch: int = 4
) -> list[Reconstruction]:
    """Draw every sample's picture from its own understanding embedding and its own seed, `batch` at a time."""
    out: list[Reconstruction] = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        for sample, drawn in zip(part, adapter.reconstruct(part, sampling, first=start), strict=True):
            assert sample.target is not None  # the adapter has just drawn at its size
            out.append(Reconstruction(sample.key, sample.target, drawn))
    return out


def psnr(reconstructions: Sequence[Reconstruction]) -> float:
    """Peak signal-to-noise ratio in dB of the mean squared error over all pictures."""
    mse = sum(r.mse for r in reconstructions) / len(reconstructions)
    return math.inf if mse == 0 else -10 * math.log10(mse)


def blank_psnr(reconstructions: Sequence[Reconstruction]) -> float:
    """The same for every picture replaced by its own mean colour: what knowing nothing but the colour would give."""
    flat = [
        Reconstruction(r.key, r.original, r.original.float().mean((0, 1)).round().to(torch.uint8).expand_as(r.original))
        for r in reconstructions
    ]
    return psnr(flat)
