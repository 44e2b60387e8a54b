"""The module that is trained: the language side of a VLM, and the decoder that looks at its hidden states."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .batch import AuxiliaryBatch
from .decoder import ReconstructionDecoder
from .vlm import LanguageSide


class Outputs(NamedTuple):
    """What a pass over a pack gives."""

    hidden: Tensor  # [T, D], behind the last norm
    drawn: list[Tensor]  # [channels, h, w] for each picture that is reconstructed
    idle: Tensor | None  # a zero that ties the decoder to the loss where it had nothing to draw


class AuxiliaryNetwork(nn.Module):
    """A VLM with an auxiliary decoder."""

    def __init__(self, language: LanguageSide, decoder: ReconstructionDecoder) -> None:
        super().__init__()
        self.language, self.decoder = language, decoder

    def forward(self, batch: AuxiliaryBatch, sizes: Sequence[tuple[int, int]]) -> Outputs:
        """Run a pack through the language model, and its pictures' hidden states through the decoder.

        Args:
            batch: encoded.
            sizes: rows and columns of what is reconstructed of each picture in `batch.reconstructed`.
        """
        assert batch.features is not None, "encode() comes first"
        hidden = self.language(batch.ids, batch.positions, batch.segments, batch.image_rows, batch.features)
        if not batch.reconstructed:
            return Outputs(hidden, [], self.decoder(hidden[:0], (1, 1), (1, 1)).sum())
        seen = hidden.index_select(0, batch.image_rows)
        rows = seen.split([h * w for h, w in batch.grids])
        chosen = [(rows[i], batch.grids[i], size) for i, size in zip(batch.reconstructed, sizes, strict=True)]
        drawn: list[Tensor] = []
        for (grid, size), alike in groupby(chosen, key=lambda each: each[1:]):  # neighbours of one shape together
            drawn += self.decoder(torch.cat([part for part, *_ in alike]), grid, size).unbind()
        return Outputs(hidden, drawn, None)
