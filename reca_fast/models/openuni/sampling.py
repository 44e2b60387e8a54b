"""Latents from contexts: DPM-Solver++ of second order (midpoint) on a straight path from noise to data.

At noise level s a picture x = (1 - s) z + s eps moves with the velocity eps - z, so z is x - s v. A step goes over the
logarithm of the signal-to-noise ratio, from the last two estimates of z.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from .batch import TIMES


@dataclass(frozen=True)
class OpenUniSampling:
    """The settings of drawing that OpenUni follows, as its authors set them."""

    steps: int = 20
    timestep_shift: float = 3.0
    guidance: float = 4.5
    """Behind a caption: how far to lead away from what is drawn without one."""
    image_guidance: float = 1.0
    """Behind a picture: how far to lead away from what is drawn without one. The authors do not."""


Velocity = Callable[[Tensor, float], Tensor]
"""Velocity of x at a time from 0 to 1000."""


def noise_levels(steps: int, shift: float) -> list[float]:
    """The noise levels from nearly 1 to 0 between which steps go, `steps` + 1 of them.

    Evenly spaced levels t, which begin one time of training below pure noise, become shift * t / (1 + (shift - 1) * t).
    """
    even = (1 - np.linspace(1, 1 / TIMES, steps + 1))[:0:-1].tolist()  # to the last bit: whole times are cut from it
    return [*(shift * t / (1 + (shift - 1) * t) for t in even), 0.0]


def draw_latents(velocity: Velocity, noise: Tensor, steps: int, shift: float) -> Tensor:
    """Go from noise to data.

    Args:
        velocity: of the model, guided or not.
        noise: fp32, of any shape.
        steps: evaluations of the model.
        shift: see `noise_levels`.

    Returns:
        Latents of the shape of the noise.
    """
    levels = noise_levels(steps, shift)
    x, before, last = noise, noise, 0.0
    for number, (level, following) in enumerate(pairwise(levels)):
        data = x - level * velocity(x, float(int(level * TIMES)))  # whole times, as the authors' scheduler has them
        if following == 0:
            return data  # the last step is of first order and leaves no noise
        step = _log_ratio(following) - _log_ratio(level)
        estimate = data
        if number > 0:
            estimate = data + (data - before) * (step / (2 * last))
        x = x * (following / level) - (1 - following) * math.expm1(-step) * estimate
        before, last = data, step
    return x


def _log_ratio(level: float) -> float:
    """log of signal to noise at a noise level between 0 and 1."""
    return math.log((1 - level) / level)
