"""From samples to the rows that their pictures' codes stand behind, and from these to logits of the codes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reca_fast.sample import Sample

from .batch import ShowoBatch, make_batch
from .collate import num_codes, pictures_of
from .rows import RowMaker
from .sampling import MASKED, Logits, ShowoSampling, draw_codes, guided

if TYPE_CHECKING:
    from .model import ShowoModel


def drawn_codes(
    model: "ShowoModel", samples: Sequence[Sample], count: int, settings: ShowoSampling, seeds: Sequence[int]
) -> Tensor:
    """The codes int64 [pictures, count] of pictures, each drawn from the condition and the text of a sample.

    With guidance every step is predicted from two samples for each picture, all in one batch: the second is without the
    condition, or without the text where there is no condition.
    """
    sizes, clip = model.encoders.config, model.clip_sees
    maker = RowMaker(model.tokenizer, sizes.clip.num_patches if clip and sizes.clip else None)
    asked = [(num_codes(sample.condition_size, sizes.magvit.downsample), count, sample.text) for sample in samples]
    branches = [[maker.spans(*each) for each in asked]]
    if settings.guidance > 1:
        branches.append([maker.unconditional(*each) for each in asked])
    rows = [spans for branch in branches for spans in branch]
    batch = model.encode(make_batch(rows, pictures=pictures_of(samples, clip=clip)).to(model.device))
    start = torch.full((len(samples), count), MASKED, dtype=torch.int64, device=model.device)
    return draw_codes(logits_behind(model, batch, len(branches), settings.guidance), start, settings, seeds)


def logits_behind(model: "ShowoModel", batch: ShowoBatch, branches: int, guidance: float) -> Logits:
    """The logits of the pictures' codes, for drawing.

    Args:
        batch: encoded, on the model's device: a sample of each picture, and where there are two branches a second one
            of each behind them, away from which `guidance` leads.
    """

    def predict(codes: Tensor) -> Tensor:
        seen = torch.where(codes == MASKED, model.config.codebook_size, codes).flatten().repeat(branches)
        logits = model.image_logits(batch, seen).view(branches, *codes.shape, -1)
        return logits[0] if branches == 1 else guided(logits[0], logits[1], guidance)

    return predict
