"""Which rows of a pack attend to which: from the spans of its samples to two attention calls without a mask tensor.

A sample is a sequence of spans, and every row sees all rows of the earlier spans of its sample. Within its own span,

    CAUSAL  a row sees itself and the rows before it: texts and most marks
    FULL    a row sees the whole span: pictures
    LEAD    as CAUSAL, and the rows see the whole next span as well: what stands before CLIP's vectors

So a span is one segment of a call, its queries being its rows and its keys the rows that they see. For a causal segment
the order of the keys is what counts, not their places: the own rows come last, what all rows see before them. The rows
of the pack are sorted into [rows of FULL spans | rows of the others], each in the order of the samples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reca_fast.kernels import Varlen, to_device

CAUSAL, FULL, LEAD = "causal", "full", "lead"


class Span(NamedTuple):
    """Rows of a sample that stand together and follow one rule."""

    mode: str  # CAUSAL, FULL or LEAD
    length: int


class AttentionPlan(NamedTuple):
    """The two attention calls of a layer over the S sorted rows of a pack."""

    full: Varlen | None  # None if the pack has no such rows
    full_keys: Tensor | None  # int64: the rows whose keys the segments of `full` see, in order
    causal: Varlen | None
    causal_keys: Tensor | None
    num_full: int  # rows of FULL spans, which come first

    def to(self, device: torch.device | str) -> "AttentionPlan":
        """The same plan with its tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Varlen) else to_device(value, device)
            for name, value in self._asdict().items()
            if isinstance(value, (Tensor, Varlen))
        }
        return self._replace(**moved)


class _Call:
    """The segments of one call, added span by span; rows are numbered as they stand in the samples."""

    def __init__(self) -> None:
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []

    def add(self, rows: Tensor, keys: Sequence[Tensor]) -> None:
        self.queries.append(rows)
        self.keys.append(torch.cat([*keys]))

    def rows(self) -> Tensor:
        return torch.cat(self.queries) if self.queries else torch.zeros(0, dtype=torch.int64)

    def planned(self, sorted_row: Tensor, *, causal: bool) -> tuple[Varlen | None, Tensor | None]:
        if not self.queries:
            return None, None
        lengths = [len(rows) for rows in self.queries], [len(keys) for keys in self.keys]
        return Varlen.from_lengths(*lengths, causal=causal), sorted_row[torch.cat(self.keys)]


def build_plan(samples: Sequence[Sequence[Span]]) -> tuple[AttentionPlan, Tensor]:
    """The plan of a pack, and how its rows are sorted.

    Args:
        samples: the spans of each sample.

    Returns:
        The plan, and int64 [S]: for each sorted row, its place in the samples, one behind another.

    Raises:
        ValueError: a LEAD span is not followed by a FULL one of its sample.
    """
    full, causal, start = _Call(), _Call(), 0
    for spans in samples:
        spans = [span for span in spans if span.length]
        before: list[Tensor] = []
        for span, following in zip(spans, [*spans[1:], None], strict=True):
            rows = torch.arange(start, start + span.length)
            start += span.length
            if span.mode == LEAD:
                if following is None or following.mode != FULL:
                    raise ValueError("a lead span comes before a full one")
                causal.add(rows, [*before, torch.arange(start, start + following.length), rows])
            else:
                (full if span.mode == FULL else causal).add(rows, [*before, rows])
            before.append(rows)
    order = torch.cat((full.rows(), causal.rows()))
    sorted_row = torch.empty_like(order)
    sorted_row[order] = torch.arange(start)
    full_calls, causal_calls = full.planned(sorted_row, causal=False), causal.planned(sorted_row, causal=True)
    return AttentionPlan(*full_calls, *causal_calls, len(full.rows())), order
