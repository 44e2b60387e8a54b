"""The recorded rows of a case, token ids with padding, as the rows of this project's samples."""

from typing import NamedTuple

from torch import Tensor

from reca_fast.errors import UserError

from ..config import ShowoConfig
from ..layout import CAUSAL, FULL, LEAD
from ..rows import GIVEN, TARGET, VECTORS, Piece, Spans, text_piece
from .case import VECTOR


class Marks(NamedTuple):
    """Ids that tell where a part of a row begins."""

    pad: int
    soi: int
    eoi: int

    @classmethod
    def of(cls, config: ShowoConfig) -> "Marks":
        return cls(*(config.llm_vocab_size + number for number in range(3)))


def spans_of(kind: str, ids: Tensor, labels: Tensor | None, config: ShowoConfig, codes: int) -> Spans:
    """The spans of one recorded row.

    Args:
        kind: t2i, lm, mmu or recon.
        ids: int64 [L].
        labels: int64 [L], -100 where a row is not predicted; read for lm and mmu.
        config: sizes of the network.
        codes: how many codes a target has.
    """
    row, marks = ids.tolist(), Marks.of(config)
    if kind == "lm":
        return [(CAUSAL, _text(row, 0, len(row), marks, labels))]
    if kind == "t2i":
        start = len(row) - codes - 2
        return [(CAUSAL, _text(row, 0, start, marks)), (FULL, _picture(row, start, TARGET, codes))]
    if kind == "mmu":
        if VECTOR in row:
            head, stop = _vectors(row, 0, marks)
            return [*head, (CAUSAL, _text(row, stop, len(row), marks, labels))]
        stop = _place(row, marks.eoi, kind) + 1
        picture = [text_piece(row[:1]), *_picture(row, 1, GIVEN, stop - 3)]
        return [(FULL, picture), (CAUSAL, _text(row, stop, len(row), marks, labels))]
    target = len(row) - codes - 2
    if VECTOR in row:
        head, stop = _vectors(row, 0, marks)
        # The closing eoi is seen by no row and predicts nothing.
        return [*head, (CAUSAL, _text(row, stop, target + 1, marks)), (FULL, [Piece(TARGET, codes)])]
    soi, eoi = _place(row, marks.soi, kind), _place(row, marks.eoi, kind)
    return [
        (CAUSAL, _text(row, 0, soi, marks)),
        (FULL, _picture(row, soi, GIVEN, eoi - soi - 1)),
        (CAUSAL, _text(row, eoi + 1, target, marks)),
        (FULL, _picture(row, target, TARGET, codes)),
    ]


def _place(row: list[int], mark: int, kind: str) -> int:
    """Where a mark stands first. Raises UserError for a row without it."""
    if mark not in row:
        raise UserError(f"A row of {kind}_input_ids lacks the token {mark} at an end of its picture.")
    return row.index(mark)


def _vectors(row: list[int], start: int, marks: Marks) -> tuple[Spans, int]:
    """The spans up to the last of CLIP's vectors, and the place behind it."""
    first = row.index(VECTOR)
    count = row.count(VECTOR)
    return [(LEAD, _text(row, start, first, marks)), (FULL, [Piece(VECTORS, count)])], first + count


def _picture(row: list[int], start: int, kind: str, codes: int) -> list[Piece]:
    stop = start + codes + 1
    return [text_piece(row[start : start + 1], position=start), Piece(kind, codes), text_piece(row[stop : stop + 1])]


def _text(row: list[int], start: int, stop: int, marks: Marks, labels: Tensor | None = None) -> list[Piece]:
    """The tokens of row[start:stop] without padding, a piece for each stretch of them; a padding token that is
    predicted stays.
    """
    said = [False] * len(row) if labels is None else (labels != VECTOR).tolist()
    kept = [i for i in range(start, stop) if row[i] != marks.pad or said[i]]
    pieces: list[Piece] = []
    while kept:
        length = next((n for n, i in enumerate(kept) if i != kept[0] + n), len(kept))
        first, kept = kept[0], kept[length:]
        learnt = [(n, n + 1) for n in range(length) if said[first + n] and first + n > 0]
        pieces.append(text_piece(row[first : first + length], learnt, position=first))
    return pieces
