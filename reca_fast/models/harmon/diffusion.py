"""Sampling a token's latents by the steps of the diffusion process that are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reca_fast.errors import UserError

STEPS = 1000
"""Of the diffusion process."""


@dataclass(frozen=True)
class Step:
    """The coefficients of one kept step, from the noisy latents x at it to those before it."""

    number: int  # of the 1000, as the denoiser knows it
    from_x: float  # clean latents = from_x * x - from_noise * noise
    from_noise: float
    clean: float  # mean = clean * (clean latents) + noisy * x
    noisy: float
    least: float  # logarithms of the least and of the largest variance
    most: float


def signal_shares() -> list[float]:
    """The share of the signal's variance that is left at each of the 1000 steps: the cosine schedule."""

    def f(u: float) -> float:
        return math.cos(math.pi / 2 * (u + 0.008) / 1.008) ** 2

    shares, left = [], 1.0
    for i in range(STEPS):
        left *= 1 - min(1 - f((i + 1) / STEPS) / f(i / STEPS), 0.999)
        shares.append(left)
    return shares


def kept_steps(kept: str) -> list[int]:
    """The steps that sampling keeps, rising.

    Args:
        kept: counts, separated by commas: the 1000 steps are cut into as many sections, of each of which so many steps
            are kept, evenly from its first to its last. "ddimN" keeps every k-th step from 0, so that there are N.

    Raises:
        UserError: it is neither, or asks for more steps than there are.
    """
    refused = UserError(
        f"mar.num_sampling_steps is {kept[:40]!r}; it must be counts of steps separated by commas, each at most its "
        f"section of the {STEPS}, or ddim and a count that {STEPS} steps can be divided into."
    )
    if kept.startswith("ddim") and kept[4:].isdecimal():
        wanted = int(kept[4:])
        found = (range(0, STEPS, stride) for stride in range(1, STEPS))
        chosen = next((list(steps) for steps in found if len(steps) == wanted), None)
        if chosen is None:
            raise refused
        return chosen
    counts = kept.split(",")
    if not all(count.strip().isdecimal() for count in counts):
        raise refused
    steps, start = [], 0
    for number, count in enumerate(map(int, counts)):
        size = STEPS // len(counts) + (number < STEPS % len(counts))
        if count > size:
            raise refused
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        steps += [start + round(j * stride) for j in range(count)]
        start += size
    if not steps:
        raise refused
    return steps


def schedule(kept: Sequence[int]) -> list[Step]:
    """The coefficients of the kept steps, in rising order. All of them follow from the shares at these steps alone."""
    shares = signal_shares()
    left = [shares[number] for number in kept]
    before = [1.0, *left[:-1]]
    betas = [1 - now / earlier for now, earlier in zip(left, before, strict=True)]
    variances = [beta * (1 - earlier) / (1 - now) for beta, earlier, now in zip(betas, before, left, strict=True)]
    variances[0] = variances[1] if len(variances) > 1 else betas[0]  # at the first step it would be 0
    return [
        Step(
            number=number,
            from_x=math.sqrt(1 / now),
            from_noise=math.sqrt(1 / now - 1),
            clean=beta * math.sqrt(earlier) / (1 - now),
            noisy=(1 - earlier) * math.sqrt(1 - beta) / (1 - now),
            least=math.log(variance),
            most=math.log(beta),
        )
        for number, now, earlier, beta, variance in zip(kept, left, before, betas, variances, strict=True)
    ]
