"""Rounding to bf16 that is right on average."""

import torch
from torch import Tensor

from reca_fast.randomness import stable_uniform

from .parts import number_of_part

AT_ONCE = 1 << 24
"""Numbers that are rounded at once, which takes eleven bytes of each."""
_DROPPED = 16
"""Bits of an fp32 number that bf16 has no room for."""


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round to one of the two nearest bf16 numbers, at random, the nearer one being the likelier: the mean over many
    draws is the value itself. Training needs that where an update is smaller than the distance of two bf16 numbers:
    rounded to the nearest, it would be lost every time.

    A number that bf16 holds stays as it is, and so do inf and NaN. A finite one stays finite.

    Args:
        values: fp32, of any shape.
        generator: on the same device; its state decides the draws.

    Returns:
        bf16, of the same shape.
    """
    draw = torch.randint(0, 1 << _DROPPED, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    # The draw carries into the kept bits with a probability that is the dropped share. The sign has a bit of its own,
    # so this rounds away from zero or towards it.
    raised = draw.add_(values.contiguous().view(torch.int32)).bitwise_and_(-1 << _DROPPED).view(torch.float32)
    largest = torch.finfo(torch.bfloat16).max
    raised = raised.clamp_(-largest, largest)
    return torch.where(values.isfinite(), raised, values).to(torch.bfloat16)


class Rounding:
    """Stochastic rounding of parameters, whose draws are a function of the run's seed, the step, the parameter and the
    part of it that a process holds: a resumed run draws the same, and copies of a part (HSDP) stay copies.

    Args:
        seed: of the run.
        device: of the values.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self._generator = seed, torch.Generator(device)

    def __call__(
        self, values: Tensor, kept: Tensor, applied: Tensor, *, name: str, parameter: Tensor, step: int
    ) -> None:
        """Round values into bf16 weights, a slice at a time.

        Args:
            values: fp32, this process's part of the parameter, contiguous.
            kept: bf16, of the same shape; what is to change.
            applied: 0-d bool on the device; where it is false, `kept` stays as it is.
            name: of the parameter.
            parameter: itself, a DTensor where it is sharded.
            step: of the run.
        """
        key = stable_uniform("round", self.seed, step, name, number_of_part(parameter))
        self._generator.manual_seed(int(key * 2**53))
        for new, old in zip(values.view(-1).split(AT_ONCE), kept.view(-1).split(AT_ONCE), strict=True):
            torch.where(applied, round_stochastically(new, self._generator), old, out=old)
