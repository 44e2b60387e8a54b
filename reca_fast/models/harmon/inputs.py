"""Harmon's data side: how many slots a sample takes, and the batch that a pack becomes."""

from collections.abc import Sequence

import torch

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.data.images import fitted_size
from reca_fast.data.inputs import Plan, Size
from reca_fast.errors import UserError
from reca_fast.sample import I2T, T2I, Sample, Text, Turn

from .batch import HarmonBatch
from .collate import collate, grid_of, slots
from .config import HarmonConfig
from .tokenizer import HarmonTokenizer


class HarmonInputs:
    """The `Inputs` of one Harmon under one data configuration.

    Raises:
        UserError: a stride or a square of the configuration is no multiple of a token's side in pixels, or
            `data.round_rows` is set, which this model has no use for.
    """

    def __init__(self, config: HarmonConfig, tokenizer: HarmonTokenizer, data: DataConfig) -> None:
        self._config, self._tokenizer, self._data = config, tokenizer, data
        _check_sizes("data.condition_resize", data.condition_resize, config.mar.stride)
        _check_sizes("data.target_resize", data.target_resize, config.mar.stride)
        if data.round_rows:
            raise UserError(f"data.round_rows is {data.round_rows}; Harmon's packs are not rounded, set it to 0.")

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def converse(self, turns: Sequence[Turn]) -> Text:
        return self._tokenizer.converse(turns)

    def plan(self, tasks: Sequence[str], size: Size, text: Text | None) -> Plan:
        """The sizes and slots of a picture. The condition of RECA is the target itself, encoded once, unless the
        configuration gives conditions another size or a blur.
        """
        target = None if set(tasks) == {I2T} else fitted_size(*size, self._data.target_resize)
        condition = None if set(tasks) == {T2I} else fitted_size(*size, self._data.condition_resize)
        seen = condition is not None
        tokens = len(self._tokenizer.prompt(text, seen=seen))
        for each in (condition, target):
            tokens += 0 if each is None else slots(grid_of(each, self._config.mar.stride), self._config.mar)
        if seen and condition == target and not self._data.blur_sigma:
            condition = None
        return Plan(condition, target, tokens)

    def collate(self, samples: Sequence[Sample], draw: torch.Generator) -> HarmonBatch:
        return collate(samples, self._config, self._tokenizer, draw)


def _check_sizes(option: str, rule: ResizeConfig, side: int) -> None:
    if rule.stride % side:
        raise UserError(f"{option}.stride is {rule.stride}; this model needs a multiple of {side}.")
