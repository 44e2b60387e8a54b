"""From a sample to the rows that a picture's codes stand behind, and from these to logits of the codes."""

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


def draw(model: "ShowoModel", sample: Sample, count: int, settings: ShowoSampling, seed: int) -> Tensor:
    """The codes int64 [count] of one picture, drawn from the condition and the text of a sample.

    With guidance every step is predicted from two samples in one batch, the second without the condition, or without
    the text where there is no condition.
    """
    sizes, clip = model.encoders.config, model.clip_sees
    maker = RowMaker(model.tokenizer, sizes.clip.num_patches if clip and sizes.clip else None)
    given = num_codes(sample.condition_size, sizes.magvit.downsample)
    branches = [maker.spans(given, count, sample.text)]
    if settings.guidance > 1:
        branches.append(maker.unconditional(given, count, sample.text))
    batch = model.encode(make_batch(branches, pictures=pictures_of([sample], clip=clip)).to(model.device))
    start = torch.full((count,), MASKED, dtype=torch.int64, device=model.device)
    return draw_codes(logits_behind(model, batch, len(branches), settings.guidance), start, settings, seed)


def logits_behind(model: "ShowoModel", batch: ShowoBatch, branches: int, guidance: float) -> Logits:
    """The logits of one picture's codes, for drawing.

    Args:
        batch: encoded, on the model's device: one sample, or two between which `guidance` leads.
    """

    def predict(codes: Tensor) -> Tensor:
        seen = torch.where(codes == MASKED, model.config.codebook_size, codes).repeat(branches)
        logits = model.image_logits(batch, seen)
        if branches == 1:
            return logits
        conditional, unconditional = logits.chunk(2)
        return guided(conditional, unconditional, guidance)

    return predict
