"""How well pictures survive the way through a condition and back: each is drawn again from what the understanding
encoder saw of it, and compared with the original.

A picture's noise depends on its own number alone, so the figures of several checkpoints compare.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca_fast.config import SamplingConfig
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import BadRecord
from reca_fast.data.samples import SampleBuilder
from reca_fast.data.sources import Source
from reca_fast.models import Model
from reca_fast.sample import RECA, Sample


@dataclass(frozen=True)
class Reconstruction:
    """A picture and what the model drew from its condition; uint8 [H, W, 3] both."""

    key: str
    original: Tensor
    drawn: Tensor

    @property
    def mse(self) -> float:
        """Mean squared error of the pixels, which count from 0 to 1."""
        return ((self.original.float() - self.drawn.float()) / 255).square().mean().item()


def pick_samples(
    source: Source, builder: SampleBuilder, count: int, passed_over: Reasons | None = None
) -> list[Sample]:
    """The first `count` readable pictures of a source, as samples to be reconstructed whatever tasks are trained.

    Fewer where the source has no more. Unreadable pictures on the way are left out and added to `passed_over`.
    """
    samples: list[Sample] = []
    for index in range(len(source)):
        if len(samples) >= count:
            break
        try:
            record = source.read(index)
            size = builder.picture_size(record.image)
            plan = builder.plan(index, record.key, size, None, epoch=0, task=RECA)
            samples.append(builder.build(record, plan))
        except BadRecord as bad:
            if passed_over is not None:
                passed_over.add(bad.reason, source.key(index))
    return samples


def reconstruct(model: Model, samples: Sequence[Sample], sampling: SamplingConfig) -> list[Reconstruction]:
    """Draw the target of every sample from its condition and prompt, number i from the noise of sampling.seed + i."""
    originals = [sample.target for sample in samples if sample.target is not None]
    sizes = [(picture.shape[1], picture.shape[0]) for picture in originals]
    seeds = range(sampling.seed, sampling.seed + len(originals))
    drawn = model.sample(samples, sizes, sampling, seeds)
    return [Reconstruction(s.key, o, d) for s, o, d in zip(samples, originals, drawn, strict=True)]


def psnr(reconstructions: Sequence[Reconstruction]) -> float:
    """Peak signal-to-noise ratio in dB of the mean squared error over all pictures; inf when none has an error."""
    mse = sum(r.mse for r in reconstructions) / len(reconstructions)
    return math.inf if mse == 0 else -10 * math.log10(mse)


def blank_psnr(reconstructions: Sequence[Reconstruction]) -> float:
    """The same with every drawn picture replaced by the mean colour of its original: what a model would reach that
    knew of a picture nothing but its colour.
    """
    flat = [
        Reconstruction(r.key, r.original, r.original.float().mean((0, 1)).round().to(torch.uint8).expand_as(r.original))
        for r in reconstructions
    ]
    return psnr(flat)
