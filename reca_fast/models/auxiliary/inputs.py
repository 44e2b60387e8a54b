"""The data side: how a conversation about a picture becomes a row of tokens, and a pack of them a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.data.images import fitted_size
from reca_fast.data.inputs import Plan, Size
from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError
from reca_fast.kernels import Varlen
from reca_fast.sample import I2T, RECA, T2I, Sample, Text, Turn

from .batch import FEATURES, TARGET, AuxiliaryBatch
from .chat import Chat
from .family import Family, Grid


@dataclass(frozen=True)
class Wording:
    """How a sample begins, as far as it is known: of a published model without files only as lengths."""

    chat: Chat | None
    head: tuple[int, ...]  # tokens up to the picture's one, that one included
    marks: tuple[tuple[int, ...], tuple[int, ...]]  # around a picture, beside what the head has

    @classmethod
    def of(cls, chat: Chat) -> "Wording":
        return cls(chat, chat.head(), chat.marks)


class Row(NamedTuple):
    """One sample's tokens."""

    ids: list[int]
    positions: Tensor  # int64 [tokens] or [3, tokens]
    image: range  # rows of the picture's tokens
    label_rows: list[int]  # behind which a token is said
    labels: list[int]


class AuxiliaryInputs:
    """The `Inputs` of one VLM under one data configuration.

    Args:
        limit: the longest text that the language model knows positions for.
        cell: side in pixels of what is reconstructed as one: a latent cell, or 1.

    Raises:
        UserError: the configuration's sizes do not fit the model, or it asks for text-to-image.
    """

    def __init__(self, family: Family, wording: Wording, data: DataConfig, limit: int, cell: int) -> None:
        self._family, self._wording, self._data, self._limit, self._cell = family, wording, data, limit, cell
        if data.tasks.t2i > 0:
            raise UserError(
                "data.tasks.t2i is above 0; a VLM with an auxiliary decoder draws nothing from captions, set it to 0."
            )
        family.check(data.condition_resize)
        fits = {data.condition_resize.fit, data.target_resize.fit}
        if data.tasks.reca > 0 and len(fits) > 1 and fits != {"keep", "squash"}:
            raise UserError(
                f"data.condition_resize.fit is {data.condition_resize.fit} and data.target_resize.fit "
                f"{data.target_resize.fit}, which show different parts of a picture; set both to one."
            )
        if data.target_resize.stride % cell:
            raise UserError(
                f"data.target_resize.stride is {data.target_resize.stride}; this VAE needs a multiple of {cell}."
            )

    @property
    def _chat(self) -> Chat:
        assert self._wording.chat is not None, "texts cannot be tokenized without the files of a tokenizer"
        return self._wording.chat

    def tokenize(self, text: str) -> list[int]:
        return self._chat.encode(text)

    def converse(self, turns: Sequence[Turn]) -> Text:
        """The conversation in the VLM's chat format; its ids hold one token for the picture, which `collate` makes as
        many as the picture has.
        """
        return self._chat.converse(turns)

    def plan(self, tasks: Sequence[str], size: Size, text: Text | None) -> Plan:
        """The sizes and tokens of a picture. What comes after the picture is left out where nobody learns to say it:
        the picture's own hidden states cannot depend on it.
        """
        if T2I in tasks:
            raise BadRecord("text-to-image, which a VLM with an auxiliary decoder does not learn")
        condition = self._family.condition_size(size, self._data.condition_resize)
        target = fitted_size(*size, self._data.target_resize) if RECA in tasks else None
        tokens = len(row_of(tasks, condition, text, self._family, self._wording).ids)
        if tokens > self._limit:
            raise BadRecord(f"more tokens than the {self._limit} that the language model has positions for")
        return Plan(condition, target, tokens)

    def collate(self, samples: Sequence[Sample], draw: torch.Generator) -> AuxiliaryBatch:
        """The batch of a pack. Nothing in a step of this model is random, so nothing is drawn."""
        return collate(samples, self._family, self._wording, self._cell)


def row_of(tasks: Sequence[str], condition: Size, text: Text | None, family: Family, wording: Wording) -> Row:
    """The tokens of one sample: head, picture, and the rest of the conversation where it is learnt (i2t)."""
    ids, said = list(wording.head), tuple[tuple[int, int], ...]()
    if I2T in tasks and text is not None:
        if family.image_token in text.ids:
            ids, said = list(text.ids), text.said
        else:
            ids += text.ids
            said = tuple((a + len(wording.head), b + len(wording.head)) for a, b in text.said)
    at, grid = ids.index(family.image_token), family.grid(condition)
    before, after = wording.marks
    start = at + len(before)
    image = range(start, start + grid[0] * grid[1])
    whole = [*ids[:at], *before, *[family.image_token] * len(image), *after, *ids[at + 1 :]]
    moved = len(whole) - len(ids)
    learnt = [number for a, b in said for number in range(a, b)]
    return Row(
        whole,
        family.positions(start, grid, len(whole) - image.stop),
        image,
        [number + (moved if number > at else 0) - 1 for number in learnt],
        [ids[number] for number in learnt],
    )


def collate(samples: Sequence[Sample], family: Family, wording: Wording, cell: int) -> AuxiliaryBatch:
    """The batch of these samples, each with a condition."""
    rows: list[Row] = []
    grids: list[Grid] = []
    for sample in samples:
        size = sample.condition_size
        assert size is not None, "every sample of a VLM has a condition"
        rows.append(row_of(sample.tasks, size, sample.text, family, wording))
        grids.append(family.grid(size))
    starts = [sum(len(row.ids) for row in rows[:number]) for number in range(len(rows))]
    lengths = [len(row.ids) for row in rows]
    features = [s.encoded_condition.tensors[FEATURES] for s in samples if s.encoded_condition is not None]
    sizes = [s.target_size for s in samples]
    labels = [label for row in rows for label in row.labels]
    cells = sum(width // cell * (height // cell) for width, height in filter(None, sizes))
    return AuxiliaryBatch(
        counts={task: count for task, count in ((RECA, cells), (I2T, len(labels))) if count},
        ids=torch.tensor([i for row in rows for i in row.ids], dtype=torch.int64),
        positions=torch.cat([row.positions for row in rows], dim=-1),
        segments=Varlen.from_lengths(lengths, lengths, causal=True),
        image_rows=torch.tensor([start + i for start, row in zip(starts, rows, strict=True) for i in row.image]),
        label_rows=_joined([start + i for start, row in zip(starts, rows, strict=True) for i in row.label_rows]),
        labels=_joined(labels),
        grids=tuple(grids),
        reconstructed=tuple(number for number, size in enumerate(sizes) if size is not None),
        target_sizes=tuple(filter(None, sizes)),
        conditions=tuple(s.condition for s in samples if s.condition is not None),
        targets=tuple(s.target for s in samples if s.target is not None),
        features=torch.cat(features) if features else None,
        goals=tuple(s.encoded_target.tensors[TARGET] for s in samples if s.encoded_target is not None),
    )


def _joined(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)
