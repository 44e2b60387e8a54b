"""What the data side asks of a model: how many tokens a sample will take, and the batch that a pack becomes.

A model answers from its configuration and its tokenizer alone. No weights are needed, so all of this runs in the
loader's threads, ahead of the step.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, Self

import torch

from reca_fast.sample import Sample, Text, Turn

Size = tuple[int, int]
"""Width and height of a picture in pixels."""


class Plan(NamedTuple):
    """What a picture will become. It is decided from the size in the picture's header, before decoding."""

    condition: Size | None  # size of the condition; None if the sample has none
    target: Size | None  # size of the target; None if the sample has none
    num_tokens: int  # how many tokens of a pack the whole sample takes, its text and markers included


class Batch(Protocol):
    """One pack as a model takes it, with every random number of the step drawn.

    It can be stored, moved and trained on again: with the same weights, a batch always gives the same losses.
    """

    @property
    def counts(self) -> Mapping[str, int]:
        """Task -> number of its tokens that have a loss, as a host integer. The step divides the sums of the losses by
        them. A task without such tokens may be left out.
        """
        ...

    @property
    def num_tokens(self) -> int:
        """All tokens of the pack, with or without a loss, for figures such as tokens per second."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The batch with all tensors on `device`. The host does not wait for the copies."""
        ...


class Inputs(Protocol):
    """The data side of one model under one data configuration. Safe to use from several threads."""

    def tokenize(self, text: str) -> Sequence[int]:
        """Token ids of a text, without markers."""
        ...

    def converse(self, turns: Sequence[Turn]) -> Text:
        """The text of a sample of i2t in the model's own wording, with the answers as what it learns to say. A caption
        is one turn without a question, for which a model asks what its authors ask.

        Raises:
            BadRecord: the model cannot put such a conversation into words. The loader skips it and counts it.
        """
        ...

    def plan(self, tasks: Sequence[str], size: Size, text: Text | None) -> Plan:
        """What a picture of `size` becomes in a sample that serves `tasks` and has `text`.

        Raises:
            BadRecord: the picture cannot serve them. The loader skips it and counts it.
        """
        ...

    def collate(self, samples: Sequence[Sample], draw: torch.Generator) -> Batch:
        """The batch of a pack's samples. Every random number of the step is drawn here, from `draw`, a generator on
        the CPU that belongs to this pack alone.
        """
        ...
