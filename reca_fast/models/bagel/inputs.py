"""BAGEL's data side: how pictures are resized, how many tokens a sample takes, and the batch that a pack becomes."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.data.images import fitted_size
from reca_fast.data.inputs import Plan, Size
from reca_fast.errors import UserError
from reca_fast.sample import I2T, T2I, Sample, Text, Turn

from .batch import BagelBatch
from .collate import collate
from .config import BagelConfig
from .padding import pad_plan
from .tokenizer import BagelTokenizer

MARKERS = 2
"""Tokens that open and close every split of a sample."""


class BagelInputs:
    """The `Inputs` of one BAGEL under one data configuration.

    Raises:
        UserError: a stride of the configuration is no multiple of the model's (the side of a patch of the ViT, or of a
            latent token, in pixels), or a smallest side is longer than the longest.
    """

    def __init__(
        self, config: BagelConfig, tokenizer: BagelTokenizer, data: DataConfig, as_latents: bool = False
    ) -> None:
        self._config, self._tokenizer, self._data, self._as_latents = config, tokenizer, data, as_latents
        self._condition_token = config.latent_stride if as_latents else config.vit.patch_size
        _check_stride("data.condition_resize", data.condition_resize, self._condition_token)
        _check_stride("data.target_resize", data.target_resize, config.latent_stride)

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def converse(self, turns: Sequence[Turn]) -> Text:
        """Questions and answers, each between markers of its own. Answers are said up to their end markers; the layout
        of a caption is that of an answer to no question.
        """
        texts = [(text, said) for turn in turns for text, said in ((turn.question, False), (turn.answer, True))]
        ids: list[int] = []
        parts = []
        for number, (text, said) in enumerate(text for text in texts if any(text)):
            ids += (self._tokenizer.eos, self._tokenizer.bos) if number else ()
            start = len(ids)
            ids += self.tokenize(text)
            if said:
                parts.append((start, len(ids) + 1))  # with the end marker, which stands behind the last of all texts
        return Text(tuple(ids), tuple((start, min(stop, len(ids))) for start, stop in parts))

    def plan(self, tasks: Sequence[str], size: Size, text: Text | None) -> Plan:
        """The sizes and tokens of a picture: t2i needs no condition, i2t alone no target; each split has two markers.

        Raises:
            UserError: t2i is joined with another task, whose condition would show the target.
        """
        if T2I in tasks and len(tasks) > 1:
            raise UserError("BAGEL learns t2i by itself, without a condition: set --data.serve one.")
        condition = None if set(tasks) == {T2I} else fitted_size(*size, self._data.condition_resize)
        target = None if set(tasks) == {I2T} else fitted_size(*size, self._data.target_resize)
        splits = (
            _grid(condition, self._condition_token),
            _grid(target, self._config.latent_stride),
            None if text is None else len(text.ids),
        )
        return Plan(condition, target, sum(length + MARKERS for length in splits if length is not None))

    def collate(self, samples: Sequence[Sample], draw: torch.Generator) -> BagelBatch:
        batch = collate(samples, self._config, self._tokenizer, draw, as_latents=self._as_latents)
        plan = pad_plan(batch.plan, len(batch.und_rows), len(batch.gen_rows), self._data.round_rows)
        return replace(batch, plan=plan)


def _grid(size: Size | None, side: int) -> int | None:
    """How many tokens of side x side pixels cover a picture; None for no picture."""
    return None if size is None else (size[0] // side) * (size[1] // side)


def _check_stride(option: str, rule: ResizeConfig, side: int) -> None:
    if rule.stride % side:
        raise UserError(f"{option}.stride is {rule.stride}; this model needs a multiple of {side}.")
