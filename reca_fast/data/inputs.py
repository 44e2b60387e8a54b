"""What the data room asks of a model: how many tokens a sample will take, and the batch that a pack becomes.

A model answers from its configuration and its tokenizer alone. No weights are needed, so all of this runs in the
loader's threads, ahead of the step.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, Self

import torch

from reca_fast.sample import Sample, Text

Size = tuple[int, int]
"""Width and height of a picture in pixels."""


class Plan(NamedTuple):
    """What becomes of one picture: decided from its header, before it is decoded."""

    condition: Size | None  # size to which it is resized for the understanding encoder; None: there is no condition
    target: Size | None  # size to which it is resized for the generation side; None: there is no target
    num_tokens: int  # what the sample takes of a pack's budget


class Batch(Protocol):
    """One pack as a model wants it, with every random number of the step drawn.

    It can be stored, moved and trained on again: the same batch always gives the same losses.
    """

    @property
    def counts(self) -> Mapping[str, int]:
        """Task -> number of tokens whose losses are summed, as host integers: the step divides by them."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole pack, for rates."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The batch with all tensors on `device`. The host does not wait for the copies."""
        ...


class Inputs(Protocol):
    """The data side of one model under one data configuration. Safe to use from several threads."""

    def tokenize(self, text: str) -> Sequence[int]:
        """Token ids of a text, without markers."""
        ...

    def plan(self, tasks: Sequence[str], size: Size, text: Text | None) -> Plan:
        """How a picture of `size` serves the tasks, together with the text.

        Raises:
            BadRecord: the picture cannot serve them; it is skipped and counted.
        """
        ...

    def collate(self, samples: Sequence[Sample], draw: torch.Generator) -> Batch:
        """One batch out of the samples of a pack. Every random number of the step is drawn here, from `draw`, a
        generator on the CPU that belongs to this pack alone.
        """
        ...
