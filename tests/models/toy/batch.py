"""The toy's data side: pictures become grey tokens of 8 x 8 pixels, and collate draws which of them are masked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.data.inputs import Plan, Size
from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError
from reca_fast.kernels import to_device
from reca_fast.sample import I2T, RECA, T2I, TASKS, Sample, Text, Turn

PATCH, LEVELS, TEXT_IDS, MAX_TOKENS = 8, 16, 64, 256
"""Pixels on a side of a token, sizes of the codebook and of the vocabulary, most tokens of one picture."""


@dataclass(frozen=True)
class ToyBatch:
    """Rows of a pack in the order [condition tokens | text tokens | target tokens]."""

    counts: dict[str, int]
    sample_of_row: Tensor  # int64 [rows]: a row attends to the rows of its own sample
    position_of_row: Tensor  # int64 [rows]: place of a token in its picture or text
    text_ids: Tensor  # int64 [text tokens]
    masked: dict[str, Tensor]  # task -> int64: numbers of the masked target tokens, whose codes are to be said
    conditions: tuple[Tensor, ...] = field(repr=False)  # uint8 [H, W, 3]; () in an encoded batch
    targets: tuple[Tensor, ...] = field(repr=False)  # uint8 [H, W, 3]; () in an encoded batch
    features: Tensor | None = None  # [condition tokens, width], of the frozen encoder
    codes: Tensor | None = None  # int64 [target tokens], of the frozen codebook

    @property
    def num_tokens(self) -> int:
        return len(self.sample_of_row)

    def to(self, device: torch.device | str) -> "ToyBatch":
        return replace(
            self,
            sample_of_row=to_device(self.sample_of_row, device),
            position_of_row=to_device(self.position_of_row, device),
            text_ids=to_device(self.text_ids, device),
            masked={task: to_device(rows, device) for task, rows in self.masked.items()},
            conditions=tuple(to_device(picture, device) for picture in self.conditions),
            targets=tuple(to_device(picture, device) for picture in self.targets),
            features=None if self.features is None else to_device(self.features, device),
            codes=None if self.codes is None else to_device(self.codes, device),
        )


class ToyInputs:
    """Every picture becomes a square of `condition_resize.max_size` and one of `target_resize.max_size` pixels."""

    def __init__(self, config: DataConfig) -> None:
        self.sides = {"condition": config.condition_resize.max_size, "target": config.target_resize.max_size}
        for name, side in self.sides.items():
            if side % PATCH or (side // PATCH) ** 2 > MAX_TOKENS:
                raise UserError(f"data.{name}_resize.max_size is {side}; the toy needs a multiple of 8 up to 128.")
        if config.tasks.i2t > 0:
            raise UserError("data.tasks.i2t is above 0; the toy does not learn captions, set it to 0.")

    def tokenize(self, text: str) -> list[int]:
        return [ord(letter) % TEXT_IDS for letter in text]

    def converse(self, turns: Sequence[Turn]) -> Text:
        raise BadRecord("the toy does not learn captions")

    def plan(self, tasks: Sequence[str], size: Size, text: Text | None) -> Plan:
        if I2T in tasks:
            raise BadRecord("the toy does not learn captions")
        condition = None if set(tasks) == {T2I} else (self.sides["condition"],) * 2
        target = (self.sides["target"],) * 2
        tokens = sum((side[0] // PATCH) ** 2 for side in (condition, target) if side)
        return Plan(condition, target, tokens + (0 if text is None else len(text.ids)))

    def collate(self, samples: Sequence[Sample], draw: torch.Generator) -> ToyBatch:
        batch, drawn = pack(samples), [s for s in samples if s.target_size is not None]
        masked: dict[str, list[Tensor]] = {task: [] for task in TASKS}
        start = 0
        for sample in drawn:
            tokens = tokens_of(sample.target_size)
            ratio = math.cos(math.pi / 2 * float(torch.rand((), generator=draw)))  # MaskGIT's schedule
            order = torch.randperm(tokens, generator=draw)
            masked[RECA if RECA in sample.tasks else T2I].append(start + order[: max(1, round(ratio * tokens))])
            start += tokens
        joined = {task: torch.cat(parts) for task, parts in masked.items() if parts}
        return replace(batch, masked=joined, counts={task: len(rows) for task, rows in joined.items()})


def tokens_of(size: Size) -> int:
    """How many tokens a picture of this width and height has."""
    return size[0] // PATCH * (size[1] // PATCH)


def pack(samples: Sequence[Sample]) -> ToyBatch:
    """The samples' rows, nothing masked and nothing drawn yet."""
    features = [s.encoded_condition.tensors["features"] for s in samples if s.encoded_condition is not None]
    codes = [s.encoded_target.tensors["codes"] for s in samples if s.encoded_target is not None]
    lengths: list[tuple[int, int]] = []  # (sample, tokens) of each stretch of rows
    lengths += [(i, tokens_of(s.condition_size)) for i, s in enumerate(samples) if s.condition_size is not None]
    lengths += [(i, len(s.text.ids)) for i, s in enumerate(samples) if s.text is not None]
    lengths += [(i, tokens_of(s.target_size)) for i, s in enumerate(samples) if s.target_size is not None]
    numbers, tokens = torch.tensor([i for i, _ in lengths]), torch.tensor([n for _, n in lengths])
    ids = [x for s in samples if s.text is not None for x in s.text.ids]
    return ToyBatch(
        counts={},
        sample_of_row=numbers.repeat_interleave(tokens),
        position_of_row=torch.cat([torch.arange(n) % MAX_TOKENS for _, n in lengths]),
        text_ids=torch.tensor(ids, dtype=torch.int64),
        masked={},
        conditions=tuple(s.condition for s in samples if s.condition is not None),
        targets=tuple(s.target for s in samples if s.target is not None),
        features=torch.cat(features) if features else None,
        codes=torch.cat(codes) if codes else None,
    )
