"""Drawing pictures: masked codes are said all at once, the least sure ones are masked again, step after step.

Letters in shapes: N codes of a picture, K codes that there are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MASKED = -1
"""Stands for a code that is not drawn yet."""
SMALLEST = 1e-20
"""Probabilities and draws below it count as it, so that their logarithms are numbers."""
WHOLE = 2**52
"""What stands for a probability of 1 where probabilities are whole numbers."""

Logits = Callable[[Tensor], Tensor]
"""The model: from codes int64 [..., N], some of them MASKED, to logits fp32 [..., N, K] of every code, guidance
included. What stands in front of N numbers the pictures that are drawn together.
"""


@dataclass(frozen=True)
class ShowoSampling:
    """The fields of `SamplingConfig` that Show-o follows, as its authors draw pictures of 512 x 512 pixels."""

    steps: int = 50
    guidance: float = 6.0  # the authors' guidance_scale of 5, which counts from 0
    temperature: float = 1.0


class Draws(Protocol):
    """Where the random numbers of pictures come from; in each step `codes` is asked first, then `uniform`."""

    def codes(self, probabilities: Tensor) -> Tensor:
        """A code for each of the N places, drawn with the probabilities fp32 [..., N, K]: int64 [..., N]."""
        ...

    def uniform(self, places: int) -> Tensor:
        """Uniform numbers in [0, 1), fp32 [..., N], on any device."""
        ...


class SeededDraws:
    """Draws for P pictures, for each from a generator of its own on the CPU: the same on every device.

    Args:
        seeds: of each picture.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def codes(self, probabilities: Tensor) -> Tensor:
        # One uniform number a place, looked up in the running sum of its probabilities. They are whole numbers here:
        # their sum is the same in any order, and of fractions torch has no ordered running sum on a GPU.
        sums = (probabilities.double() * WHOLE).round().long().cumsum(dim=-1)
        point = (self.uniform(probabilities.shape[-2]).to(sums.device, torch.float64) * sums[..., -1]).long()
        drawn = torch.searchsorted(sums, point[..., None], right=True)[..., 0]
        return drawn.clamp(max=probabilities.shape[-1] - 1)

    def uniform(self, places: int) -> Tensor:
        return torch.stack([torch.rand(places, generator=generator) for generator in self._generators])


class RecordedDraws:
    """Draws that were recorded.

    Args:
        codes: int64 [steps, N].
        uniform: fp32 [steps, N].
    """

    def __init__(self, codes: Tensor, uniform: Tensor) -> None:
        self._codes, self._uniform = iter(codes.unbind()), iter(uniform.unbind())

    def codes(self, probabilities: Tensor) -> Tensor:
        return next(self._codes).to(probabilities.device)

    def uniform(self, places: int) -> Tensor:
        return next(self._uniform)


class Step(NamedTuple):
    """What one step came to."""

    logits: Tensor  # fp32 [..., N, K], guidance included
    codes: Tensor  # int64 [..., N], every place filled; those of the last step are the picture
    to_mask: Tensor  # fp32 [...]: how many of them to mask again
    masked: Tensor  # bool [..., N]: which of them are masked again


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Logits led away from those without the condition: by 1, which is off, they are the conditional ones. The authors
    count from 0: their scale is `guidance` - 1.
    """
    scale = guidance - 1
    return (1 + scale) * conditional - scale * unconditional


def decoding_steps(logits: Logits, start: Tensor, steps: int, temperature: float, draws: Draws) -> Iterator[Step]:
    """Draw the masked codes of one picture, or of several, each by itself.

    In every step all masked places are filled; then so many are masked again as a cosine says, those of the smallest
    confidence: the logarithm of the probability, plus noise that grows less from step to step.

    Args:
        logits: the model.
        start: int64 [..., N] on the model's device; MASKED where a code is to be drawn, others stay as they are.
        steps: how many; the last one masks nothing that counts.
        temperature: of the noise at the beginning; 0 keeps the likeliest of what was drawn.
        draws: the random numbers.
    """
    codes, places = start.clone(), start.shape[-1]
    for step in range(1, steps + 1):
        share = step / steps
        # The authors multiply the temperature by what is left, so the factors pile up from step to step.
        temperature *= 1 - share
        unknown = codes == MASKED
        predicted = logits(codes)
        chances = predicted.softmax(dim=-1)
        drawn = torch.where(unknown, draws.codes(chances), codes)
        chance = chances.gather(-1, drawn[..., None])[..., 0]
        sure = torch.full_like(chance, torch.finfo(torch.float32).max)
        confidence = torch.where(unknown, chance, sure).clamp(min=SMALLEST).log()
        confidence = confidence + temperature * gumbel(draws.uniform(places).to(codes.device))
        # In fp32, as the authors: two thirds of the way the cosine is a hair below one half there.
        wanted = int(places * torch.cos(torch.tensor(share) * math.pi * 0.5))
        to_mask = (unknown.sum(-1) - 1).clamp(max=wanted).clamp(min=1)
        border = confidence.sort().values.gather(-1, to_mask.clamp(max=places - 1)[..., None])
        masked = confidence < border
        yield Step(predicted, drawn, to_mask.float(), masked)
        codes = torch.where(masked, MASKED, drawn)


def gumbel(uniform: Tensor) -> Tensor:
    """Noise of Gumbel's distribution from uniform numbers in [0, 1)."""
    return -(-uniform.clamp(min=SMALLEST).log()).clamp(min=SMALLEST).log()


def draw_codes(logits: Logits, start: Tensor, sampling: ShowoSampling, seeds: Sequence[int]) -> Tensor:
    """The codes of P pictures, int64 [P, N]. Each depends on nothing but its `logits`, its `start` and its seed.

    Args:
        logits: the model; `sampling.guidance` is its own business.
        start: int64 [P, N], see `decoding_steps`.
        sampling: steps and temperature.
        seeds: of each picture's random numbers.
    """
    codes = start
    for step in decoding_steps(logits, start, sampling.steps, sampling.temperature, SeededDraws(seeds)):
        codes = step.codes
    return codes
