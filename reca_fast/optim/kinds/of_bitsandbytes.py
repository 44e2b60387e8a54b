"""AdamW with moments in 8 bits, by bitsandbytes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from reca_fast.config import OptimConfig
from reca_fast.errors import UserError
from reca_fast.extras import library

from ..parts import New
from .adamw import MOMENTS, AdamW
from .blocks import in_blocks, new_blocks
from .kind import Now, Weight

BLOCK = 256
"""Numbers that share a scale; the kernels know no other size."""


class AdamW8bit:
    """AdamW whose moments have 8 bits and a scale for every 256 numbers: 2.03 bytes for each weight. Those of small
    parameters stay in fp32.

    States: `exp_avg_codes`, `exp_avg_scales`, `exp_avg_sq_codes`, `exp_avg_sq_scales`, or those of `AdamW`. The bias of
    the moments is corrected by the number of steps of the run, skipped ones included.

    Args:
        config: of the optimizer.
        device: of the updates.
        paged: keep the codes in memory that the GPU's driver moves to the host when the GPU's is full.

    Raises:
        UserError: bitsandbytes is not installed, or `paged` is asked for without a GPU of NVIDIA's.
    """

    skips = False

    def __init__(self, config: OptimConfig, device: torch.device, *, paged: bool = False) -> None:
        if paged and (device.type != "cuda" or torch.version.cuda is None):
            raise UserError(
                "optim.kind=paged_adamw8bit keeps moments in memory of an NVIDIA GPU's driver, and there is no such "
                "GPU here; set --optim.kind adamw8bit, with --optim.states host to keep them in host memory."
            )
        self.config, self.device, self.paged = config, device, paged
        self.plain = AdamW(config)
        with unset_fake_temporarily():  # the library reads numbers, and fake tensors hold none
            self.functional = library("bitsandbytes", f"optim.kind={config.kind}").functional
            maps = [self.functional.create_dynamic_map(signed=signed).tolist() for signed in (True, False)]
        self.values_of_codes = [torch.tensor(values, device=device) for values in maps]

    def new_states(self, parameter: Tensor, new: New) -> dict[str, Tensor]:
        if not in_blocks(parameter, BLOCK):
            return self.plain.new_states(parameter, new)
        return new_blocks(parameter, BLOCK, 8, self._new_pages if self.paged else new, new)

    def _new_pages(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        pages = _Pages(self.functional, shape, self.device) if prod(shape) else torch.empty(shape, dtype=dtype)
        return torch.as_tensor(pages, device=self.device).zero_()

    def step(self, weights: Sequence[Weight], now: Now) -> None:
        if plain := [weight for weight in weights if "step" in weight.states]:
            self.plain.step(plain, now)
        for weight in weights:
            if "step" not in weight.states and weight.values.numel():
                self._step(weight, now)

    def _step(self, weight: Weight, now: Now) -> None:
        values, gradient = weight.values.view(-1), weight.gradient.reshape(-1)
        codes, scales = (
            [weight.states[f"{moment}_{part}"].view(-1) for moment in MOMENTS] for part in ("codes", "scales")
        )
        with _on_the_default_stream(self.device):
            self.functional.optimizer_update_8bit_blockwise(
                "adam",
                *(gradient, values, *codes, *self.config.betas, 0.0, 0.0, self.config.eps),
                *(now.step, now.lr, *self.values_of_codes, *scales),
                weight_decay=now.weight_decay,
            )


class _Pages:
    """Bytes in memory that GPU and host share ("managed"), described so that torch makes a tensor on the GPU of it. The
    library has them as a tensor on the CPU, which only its own kernels can use without the host waiting.
    """

    def __init__(self, functional: Any, shape: Sequence[int], device: torch.device) -> None:
        self.tensor = functional.get_paged(*shape, dtype=torch.uint8, device=device)  # never freed by the library
        self.__cuda_array_interface__ = {
            "data": (self.tensor.data_ptr(), False),
            "shape": tuple(shape),
            "typestr": "|u1",
            "version": 3,
        }


@contextmanager
def _on_the_default_stream(device: torch.device) -> Iterator[None]:
    """Inside, what is launched on the default stream, as the library does it, follows the work of the current stream,
    and later work of the current stream follows it.
    """
    if device.type != "cuda":
        yield
        return
    default, current = torch.cuda.default_stream(device), torch.cuda.current_stream(device)
    default.wait_stream(current)
    yield
    current.wait_stream(default)
