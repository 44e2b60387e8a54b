"""AdamW with moments in 8 or 4 bits, by torchao."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from reca_fast.config import OptimConfig
from reca_fast.extras import library

from ..parts import New
from .adamw import MOMENTS, AdamW
from .blocks import in_blocks, new_blocks
from .kind import Now, Weight

BLOCKS = {8: 256, 4: 128}
"""Bits of a code -> numbers that share a scale, as the library has it."""
PIECE = 1 << 22
"""Numbers that are updated at once, so that what is computed in between stays small; a multiple of the blocks."""


class AdamWLowBit:
    """AdamW whose moments have 8 bits and a scale for every 256 numbers, or 4 bits and a scale for every 128: 2.03 or
    1.06 bytes for each weight. Those of small parameters stay in fp32. On a GPU the arithmetic is compiled.

    States: `exp_avg_codes`, `exp_avg_scales`, `exp_avg_sq_codes`, `exp_avg_sq_scales`, or those of `AdamW`. The bias of
    the moments is corrected by the number of steps of the run, skipped ones included.

    Args:
        config: of the optimizer.
        device: of the updates.
        bits: 8 or 4.

    Raises:
        UserError: torchao is not installed.
    """

    skips = False

    def __init__(self, config: OptimConfig, device: torch.device, bits: int) -> None:
        with unset_fake_temporarily():  # the library reads numbers, and fake tensors hold none
            library("torchao", f"optim.kind={config.kind}")
            moment = import_module(f"torchao.optim.subclass_{bits}bit")
            rule = import_module("torchao.optim.adam").single_param_adam
            maps = moment.get_qmap_signed(), moment.get_qmap_unsigned()
        self.rule = torch.compile(rule, fullgraph=True, dynamic=False) if device.type == "cuda" else rule
        self.wrap = getattr(moment, f"OptimState{bits}bit")
        self.config, self.bits, self.plain = config, bits, AdamW(config)
        self.zeros = [list(values).index(0.0) if 0.0 in values else -1 for values in maps]  # no such code: -1
        self.values_of_codes = [torch.tensor(values, device=device) for values in maps]

    def new_states(self, parameter: Tensor, new: New) -> dict[str, Tensor]:
        if not in_blocks(parameter, BLOCKS[self.bits]):
            return self.plain.new_states(parameter, new)
        return new_blocks(parameter, BLOCKS[self.bits], self.bits, new, new)

    def step(self, weights: Sequence[Weight], now: Now) -> None:
        if plain := [weight for weight in weights if "step" in weight.states]:
            self.plain.step(plain, now)
        lr, step = torch.tensor(now.lr), torch.tensor(float(now.step))  # on the CPU, as the library has them
        with torch._dynamo.utils.disable_cache_limit():
            for weight in weights:
                if "step" not in weight.states:
                    for values, gradient, *moments in self._pieces(weight):
                        self.rule(
                            *(values, gradient, step, *moments, None, lr, *self.config.betas),
                            *(now.weight_decay, self.config.eps, True, False),
                        )

                    self._forget_first_where_second_is_lost(weight)

    def _forget_first_where_second_is_lost(self, weight: Weight) -> None:
        """Where a second moment is rounded to 0, so is the first: the next step, if it has no gradient there, would
        divide by `optim.eps` alone.
        """
        first, second = (weight.states[f"{moment}_codes"] for moment in MOMENTS)
        if min(self.zeros) >= 0:
            first.masked_fill_(second == self.zeros[1], self.zeros[0])

    def _pieces(self, weight: Weight) -> Iterator[tuple[Any, ...]]:
        """Values, gradient and both moments, piece by piece, in the memory of the whole."""
        per_byte, block = 8 // self.bits, BLOCKS[self.bits]
        for start in range(0, weight.values.numel(), PIECE):
            stop = min(start + PIECE, weight.values.numel())
            values, gradient = (t.reshape(-1)[start:stop] for t in (weight.values, weight.gradient))
            moments = []
            for moment, signed in zip(MOMENTS, (True, False), strict=True):
                codes = weight.states[f"{moment}_codes"].view(-1)[start // per_byte : stop // per_byte]
                scales = weight.states[f"{moment}_scales"].view(-1)[start // block : stop // block]
                shape = (values.shape,) if self.bits == 4 else ()
                moments.append(self.wrap(codes, scales, self.values_of_codes[not signed], signed, *shape))
            yield values, gradient, *moments
