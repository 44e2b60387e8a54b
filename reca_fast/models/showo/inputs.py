"""Show-o's data side: how large pictures become, how many tokens a sample takes, and the batch that a pack becomes."""

from collections.abc import Sequence

import torch

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.data.images import fitted_size
from reca_fast.data.inputs import Plan, Size
from reca_fast.errors import UserError
from reca_fast.sample import I2T, T2I, Sample, Text, Turn

from .batch import ShowoBatch
from .collate import collate, num_codes
from .encoders import EncoderConfig
from .rows import RowMaker, num_rows
from .tokenizer import ShowoTokenizer


class ShowoInputs:
    """The `Inputs` of one Show-o under one data configuration.

    Args:
        tokenizer: of the checkpoint.
        encoders: sizes of the frozen encoders.
        clip_sees: whether CLIP sees the conditions; otherwise they are read as codes.

    Raises:
        UserError: a stride of the configuration is no multiple of the side of a code in pixels, or rows are to be
            padded.
    """

    def __init__(
        self, tokenizer: ShowoTokenizer, encoders: EncoderConfig, data: DataConfig, *, clip_sees: bool
    ) -> None:
        self._tokenizer, self._data, self._stride = tokenizer, data, encoders.magvit.downsample
        self._clip = encoders.clip if clip_sees else None
        self._maker = RowMaker(tokenizer, None if self._clip is None else self._clip.num_patches)
        self._check_stride("data.target_resize", data.target_resize)
        if self._clip is None:
            self._check_stride("data.condition_resize", data.condition_resize)
        if data.round_rows:
            raise UserError(
                f"data.round_rows is {data.round_rows}; only BAGEL's packs have rows to round, set it to 0."
            )

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def converse(self, turns: Sequence[Turn]) -> Text:
        return self._tokenizer.converse(turns)

    def plan(self, tasks: Sequence[str], size: Size, text: Text | None) -> Plan:
        """The sizes and tokens of a picture: t2i alone needs no condition, i2t alone no target."""
        condition = None if set(tasks) == {T2I} else self._condition_size(size, understood=set(tasks) == {I2T})
        target = None if set(tasks) == {I2T} else fitted_size(*size, self._data.target_resize)
        codes = num_codes(condition, self._stride), num_codes(target, self._stride)
        return Plan(condition, target, num_rows(self._maker.spans(*codes, text)))

    def _condition_size(self, size: Size, *, understood: bool) -> Size:
        """A picture that is to be drawn again is shown as `data.condition_resize` says. One that is to be understood
        has the size that the checkpoint reads: CLIP's side along its shorter side, or that of the targets.
        """
        rule = self._data.condition_resize
        if not understood:
            return fitted_size(*size, rule)
        if self._clip is None:
            return fitted_size(*size, self._data.target_resize)
        side = self._clip.image_size
        if rule.fit not in ("keep", "squash"):
            return side, side
        return max(side, round(side * size[0] / size[1])), max(side, round(side * size[1] / size[0]))

    def collate(self, samples: Sequence[Sample], draw: torch.Generator) -> ShowoBatch:
        return collate(samples, self._maker, self._stride, draw, clip=self._clip is not None)

    def _check_stride(self, option: str, rule: ResizeConfig) -> None:
        if rule.stride % self._stride:
            raise UserError(f"{option}.stride is {rule.stride}; this model needs a multiple of {self._stride}.")
