"""The batch of one pack: every sample's text and picture as one row of tokens, nothing padded.

Letters in shapes: T tokens of the pack; N tokens of pictures among them; L tokens that are learnt to be said.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from reca_fast.data.inputs import Size
from reca_fast.kernels import Varlen, to_device

from .family import Grid

FEATURES, TARGET = "features", "target"
"""What a cache calls the tower's output for a condition, and the latents or pixels of a target."""


@dataclass(frozen=True)
class AuxiliaryBatch:
    """A pack as tensors. Pictures are there as uint8 until `encode`, and as what the frozen encoders make of them from
    then on. A sample whose picture is reconstructed has its target in the same place of `reconstructed`.
    """

    counts: dict[str, int]  # reca: cells or pixels of the targets; i2t: L
    ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T] or [3, T]
    segments: Varlen  # of the T tokens, a sample each, causal
    image_rows: Tensor  # int64 [N]
    label_rows: Tensor  # int64 [L]: the rows behind which a token is said
    labels: Tensor  # int64 [L]
    grids: tuple[Grid, ...]  # of each picture
    reconstructed: tuple[int, ...]  # numbers of the pictures that have a target
    target_sizes: tuple[Size, ...]  # of the targets, in pixels
    conditions: tuple[Tensor, ...] = field(default=(), repr=False)  # uint8 [H, W, 3]
    targets: tuple[Tensor, ...] = field(default=(), repr=False)  # uint8 [H, W, 3]
    features: Tensor | None = None  # [N * joined, width]
    goals: tuple[Tensor, ...] = ()  # fp32 [channels, h, w], what is reconstructed

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def is_encoded(self) -> bool:
        """Whether it needs no encoder any more."""
        return self.features is not None and len(self.goals) == len(self.reconstructed)

    def for_drawing(self) -> "AuxiliaryBatch":
        """The same pack with every picture to be reconstructed, though none has a target."""
        return replace(self, reconstructed=tuple(range(len(self.grids))))

    def to(self, device: torch.device | str) -> "AuxiliaryBatch":
        return replace(self, **{entry.name: _moved(getattr(self, entry.name), device) for entry in fields(self)})


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Varlen):
        return value.to(device)
    if isinstance(value, Tensor):
        return to_device(value, device)
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return tuple(to_device(each, device) for each in value)
    return value
