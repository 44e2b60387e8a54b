"""Where the rows of a pack stand: in MAR's encoder, in the language model, in MAR's decoder, and among what is learnt.

One sample of RECA, with L tokens of a picture (o), of which v are visible (x) and the others hidden, nb buffers (b) and
the ids of its prompt (p):

    encoder         | b b o o o o o o | b b x x |             the condition, and the masked pass over the same latents
    language model  | p p p  o o o o o o b b  p p p p p  x x b b |                  causal, buffers behind their tokens
    decoder         | b b o o o o o o |                           x where visible, the mask token where hidden

A pack's conditions stand first in the encoder, then all masked passes; samples follow each other in the language model.
Pictures are numbered in the order in which the encoder sees them. Where the condition of a sample is the very picture
that it draws, both passes read the same latents.

Letters in shapes: P passes of the encoder with E rows in all; S rows of the language model; T tokens of all pictures; V
visible tokens; M targets; Q predicted tokens, which are the hidden ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.kernels import Varlen, to_device
from reca_fast.models.parts.qwen2 import View, causal_view
from reca_fast.sample import RECA, T2I

from .positions import Grid


class Prompt(NamedTuple):
    """Token ids around the place of a condition."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    said: tuple[tuple[int, int], ...] = ()  # parts [start, stop) of `after` that the model learns to say

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Piece:
    """One sample of a pack, all drawn."""

    prompt: Prompt
    condition: Grid | None = None
    target: Grid | None = None
    same: bool = False  # the condition is the picture that is drawn
    hidden: Tensor | None = None  # bool [L], of the target
    task: str = RECA  # that the target serves


class EncoderPlan(NamedTuple):
    """The rows of MAR's encoder."""

    grids: tuple[Grid, ...]  # of all pictures, in their order
    passes: int  # P
    condition_tokens: int  # the first tokens of all pictures, which are conditions'
    condition_rows: int  # the first rows of E, which are conditions'
    visible: Tensor  # int64 [V], tokens that masked passes see
    order: Tensor  # int64 [E], row of [buffers of each pass ; condition tokens ; visible tokens]
    segments: Varlen  # the rows of each pass

    def to(self, device: torch.device | str) -> "EncoderPlan":
        """The same with its tensors on a device."""
        return self._replace(
            visible=to_device(self.visible, device),
            order=to_device(self.order, device),
            segments=self.segments.to(device),
        )


class LanguagePlan(NamedTuple):
    """The rows of the language model."""

    text_ids: Tensor  # int64 [text rows]
    text_rows: Tensor  # int64 [text rows], the row of each
    slot_rows: Tensor  # int64 [E], the row of each row of the encoder
    positions: Tensor  # int64 [S], in the rotary embedding
    view: View  # who sees whom
    asked: Tensor  # int64 [A], rows that are read behind the last layer: from the first one of a sample to its end
    asked_view: View
    seen: Tensor  # int64 [rows of masked passes], which of the asked rows belongs to each
    label_rows: Tensor  # int64 [labels], asked rows whose next token is learnt
    labels: Tensor  # int64 [labels], that token

    def to(self, device: torch.device | str) -> "LanguagePlan":
        """The same with its tensors on a device."""
        moved = {k: to_device(v, device) for k, v in self._asdict().items() if isinstance(v, Tensor)}
        return self._replace(**moved, view=self.view.to(device), asked_view=self.asked_view.to(device))


class DecoderPlan(NamedTuple):
    """The rows of MAR's decoder."""

    grids: tuple[Grid, ...]  # of the targets
    hidden: int  # tokens in whose place the mask token stands
    order: Tensor  # int64 [rows], row of [rows of masked passes ; hidden tokens]
    segments: Varlen  # the rows of each target
    rows: Tensor  # int64 [Q], of the decoder, those whose noise is predicted: the tokens of one task behind another's
    tokens: Tensor  # int64 [Q], number of each among the tokens of all targets
    latents: Tensor  # int64 [Q], number of each among the tokens of all pictures

    def to(self, device: torch.device | str) -> "DecoderPlan":
        """The same with its tensors on a device."""
        moved = {k: to_device(v, device) for k, v in self._asdict().items() if isinstance(v, Tensor)}
        return self._replace(**moved, segments=self.segments.to(device))


@dataclass(frozen=True)
class Layout:
    """Where all rows of a pack stand."""

    encoder: EncoderPlan
    language: LanguagePlan
    decoder: DecoderPlan
    predicted: dict[str, int]  # task -> its predicted tokens, in the order of DecoderPlan.rows
    pictures: tuple[tuple[int, bool], ...]  # of each picture, the number of its sample and whether it is a target only


def build_layout(pieces: Sequence[Piece], buffers: int) -> Layout:
    """The layout of a pack.

    Args:
        pieces: its samples, at least one, each with a prompt.
        buffers: nb.
    """
    pictures = [(i, False) for i, piece in enumerate(pieces) if piece.condition is not None]
    conditions = len(pictures)
    pictures += [(i, True) for i, piece in enumerate(pieces) if piece.target is not None and not piece.same]
    grids = tuple(_grid(pieces[i], alone) for i, alone in pictures)
    first_token = dict(zip(pictures, _starts([rows * columns for rows, columns in grids]), strict=True))
    encoder = _encoder(pieces, buffers, grids, conditions, first_token)
    decoder, predicted = _decoder(pieces, buffers, first_token)
    return Layout(encoder, _language(pieces, buffers), decoder, predicted, tuple(pictures))


def _grid(piece: Piece, target: bool) -> Grid:
    grid = piece.target if target else piece.condition
    assert grid is not None, "a picture has a grid"
    return grid


def _size(grid: Grid) -> int:
    return grid[0] * grid[1]


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each of these stretches begins, when they lie behind one another."""
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    return starts


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0, dtype=torch.int64)


def _visible(piece: Piece) -> Tensor:
    """The visible tokens of a target, in their order."""
    assert piece.hidden is not None, "a target has its mask"
    return piece.hidden.logical_not().nonzero()[:, 0]


def _hidden(piece: Piece) -> Tensor:
    assert piece.hidden is not None, "a target has its mask"
    return piece.hidden.nonzero()[:, 0]


def _encoder(
    pieces: Sequence[Piece],
    buffers: int,
    grids: tuple[Grid, ...],
    conditions: int,
    first_token: dict[tuple[int, bool], int],
) -> EncoderPlan:
    condition_sizes = [_size(grid) for grid in grids[:conditions]]
    visible = [
        first_token[i, not piece.same] + _visible(piece) for i, piece in enumerate(pieces) if piece.target is not None
    ]
    tokens = [*condition_sizes, *map(len, visible)]
    order = []
    for number, (start, count) in enumerate(zip(_starts(tokens), tokens, strict=True)):
        order.append(torch.arange(number * buffers, (number + 1) * buffers))
        order.append(len(tokens) * buffers + torch.arange(start, start + count))
    lengths = [buffers + count for count in tokens]
    return EncoderPlan(
        grids=grids,
        passes=len(tokens),
        condition_tokens=sum(condition_sizes),
        condition_rows=sum(lengths[:conditions]),
        visible=_joined(visible),
        order=_joined(order),
        segments=Varlen.from_lengths(lengths, lengths, causal=False),
    )


def _language(pieces: Sequence[Piece], buffers: int) -> LanguagePlan:
    ids: list[int] = []
    text_rows: list[Tensor] = []
    condition_rows: list[Tensor] = []
    target_rows: list[Tensor] = []
    seen: list[Tensor] = []
    asked: list[Tensor] = []
    label_rows: list[int] = []
    labels: list[int] = []
    lengths, asked_lengths = [], []
    start = num_asked = 0
    for piece in pieces:
        prompt, end = piece.prompt, start
        ids += [*prompt.before, *prompt.after]
        text_rows.append(torch.arange(end, end + len(prompt.before)))
        end += len(prompt.before)
        if piece.condition is not None:
            condition_rows.append(_slots(end, _size(piece.condition), buffers))
            end += _size(piece.condition) + buffers
        text_rows.append(torch.arange(end, end + len(prompt.after)))
        learnt = [(end + place - 1, prompt.after[place]) for first, stop in prompt.said for place in range(first, stop)]
        end += len(prompt.after)
        first_asked = min([row for row, _ in learnt[:1]] + [end])
        shift = num_asked - first_asked  # from a row of the language model to one of the asked
        label_rows += [row + shift for row, _ in learnt]
        labels += [label for _, label in learnt]
        if piece.target is not None:
            slots = _slots(end, len(_visible(piece)), buffers)
            target_rows.append(slots)
            seen.append(slots + shift)
            end += len(slots)
        asked.append(torch.arange(first_asked, end))
        num_asked += end - first_asked
        asked_lengths.append(end - first_asked)
        lengths.append(end - start)
        start = end
    return LanguagePlan(
        text_ids=torch.tensor(ids, dtype=torch.int64),
        text_rows=_joined(text_rows),
        slot_rows=_joined([*condition_rows, *target_rows]),
        positions=_joined([torch.arange(length) for length in lengths]),
        view=causal_view(lengths),
        asked=_joined(asked),
        asked_view=View(Varlen.from_lengths(asked_lengths, lengths, causal=True)),
        seen=_joined(seen),
        label_rows=torch.tensor(label_rows, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
    )


def _slots(start: int, tokens: int, buffers: int) -> Tensor:
    """The rows of one pass of the encoder, buffers first, in a place of the language model, buffers last."""
    return torch.cat((torch.arange(tokens, tokens + buffers), torch.arange(tokens))) + start


def _decoder(
    pieces: Sequence[Piece], buffers: int, first_token: dict[tuple[int, bool], int]
) -> tuple[DecoderPlan, dict[str, int]]:
    targets = [(i, piece) for i, piece in enumerate(pieces) if piece.target is not None]
    num_seen = sum(buffers + len(_visible(piece)) for _, piece in targets)
    order: list[Tensor] = []
    grids: list[Grid] = []
    predicted: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {RECA: [], T2I: []}
    seen = hidden = row = token = 0
    for i, piece in targets:
        grid = _grid(piece, True)
        shown, masked = _visible(piece), _hidden(piece)
        place = torch.empty(_size(grid), dtype=torch.int64)
        place[shown] = seen + buffers + torch.arange(len(shown))
        place[masked] = num_seen + hidden + torch.arange(len(masked))
        order += [torch.arange(seen, seen + buffers), place]
        of_picture = first_token[i, not piece.same]
        predicted[piece.task].append((row + buffers + masked, token + masked, of_picture + masked))
        seen += buffers + len(shown)
        hidden += len(masked)
        row += buffers + _size(grid)
        token += _size(grid)
        grids.append(grid)
    lengths = [buffers + _size(grid) for grid in grids]
    parts = [part for of_task in predicted.values() for part in of_task]
    rows, tokens, latents = (_joined([part[k] for part in parts]) for k in range(3))
    plan = DecoderPlan(
        tuple(grids), hidden, _joined(order), Varlen.from_lengths(lengths, lengths, causal=False), rows, tokens, latents
    )
    return plan, {task: sum(len(part[0]) for part in of_task) for task, of_task in predicted.items() if of_task}
