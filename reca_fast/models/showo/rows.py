"""The rows of a sample: its marks, texts and pictures in the order in which the authors' model reads them.

    t2i              t2i bos text eos | soi codes eoi
    reca, CLIP       mmu soi | vectors | eoi bos prompt eos .. soi | codes
    reca, codes      mmu | soi given codes eoi | bos prompt eos | soi codes eoi
    i2t, CLIP        mmu system soi | vectors | eoi text
    i2t, codes       mmu soi given codes eoi | text

A bar begins another span (`layout.py`). The authors pad the rows of a batch to one length. What no other row sees is
left out here: all padding, and in a reconstruction through CLIP the closing eoi. Positions count what was left out in
the middle of a row (the dots), so that distances are those of the authors; in front of a row it makes no difference,
for the rotary embedding knows distances alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

from reca_fast.data.records import BadRecord
from reca_fast.sample import Text

from .layout import CAUSAL, FULL, LEAD
from .tokenizer import ShowoTokenizer

TEXT, GIVEN, TARGET, VECTORS = "text", "given", "target", "vectors"
"""Kinds of pieces: token ids, the codes of a condition, the codes of a target, CLIP's vectors of a condition."""
PROMPT_IDS = 128
"""Ids in front of the target of a reconstruction through CLIP, padding included: where the target's positions begin."""


class Piece(NamedTuple):
    """Consecutive rows of one kind."""

    kind: str
    length: int
    ids: tuple[int, ...] = ()  # of TEXT
    said: tuple[tuple[int, int], ...] = ()  # of TEXT: the parts [start, stop) of ids that the model learns to say
    position: int | None = None  # of the first row, where it does not follow the row before


Spans = list[tuple[str, list[Piece]]]
"""The spans of one sample, in order: the mode of each and its pieces."""


def text_piece(ids: Sequence[int], said: Sequence[tuple[int, int]] = (), position: int | None = None) -> Piece:
    """Token ids as a piece (see the fields of `Piece`)."""
    return Piece(TEXT, len(ids), tuple(ids), tuple(said), position)


def num_rows(spans: Spans) -> int:
    """How many rows a sample has."""
    return sum(piece.length for _, pieces in spans for piece in pieces)


class RowMaker:
    """Makes the rows of samples.

    Args:
        tokenizer: knows the marks, and how the authors word what is asked of the model.
        vectors: how many vectors CLIP makes of a picture; None where conditions are read as codes.
    """

    def __init__(self, tokenizer: ShowoTokenizer, vectors: int | None) -> None:
        self._tokenizer, self._marks, self._vectors = tokenizer, tokenizer.vocabulary, vectors

    def spans(self, given: int | None, target: int | None, text: Text | None) -> Spans:
        """The rows of a sample.

        Args:
            given: how many codes its condition has (not read where CLIP sees it); None without a condition.
            target: how many codes its target has; None without one.
            text: its prompt, caption or conversation; None without one.

        Raises:
            BadRecord: a prompt is too long to stand in front of a target.
        """
        if target is None:
            return self._understanding(given, text)
        if given is None:
            return self._generation(target, text)
        if self._vectors is None:
            return self._reconstruction_of_codes(given, target, text)
        return self._reconstruction_of_vectors(self._vectors, target, text)

    def unconditional(self, given: int | None, target: int, text: Text | None) -> Spans:
        """The rows that guidance compares those of `spans` with: without the text of t2i, without the condition of a
        reconstruction.
        """
        if given is None:
            return self._generation(target, None)
        marks, prompt = self._marks, self._prompt(text)
        if self._vectors is None:
            head = [text_piece([marks.t2i]), prompt._replace(position=given + 3)]
            return [(CAUSAL, head), self._target(target)]
        head = [text_piece([marks.t2i]), prompt._replace(position=self._vectors + 3), self._start(self._vectors)]
        return [(CAUSAL, head), (FULL, [Piece(TARGET, target)])]

    def _target(self, codes: int) -> tuple[str, list[Piece]]:
        return FULL, self._picture(Piece(TARGET, codes))

    def _picture(self, codes: Piece) -> list[Piece]:
        return [text_piece([self._marks.soi]), codes, text_piece([self._marks.eoi])]

    def _start(self, vectors: int) -> Piece:
        return text_piece([self._marks.soi], position=PROMPT_IDS + vectors)

    def _prompt(self, text: Text | None) -> Piece:
        """The text between two pictures of a reconstruction: a template in the authors' wording, or what is said of the
        picture, as it is.
        """
        if text is not None and text.said:
            return text_piece(text.ids, text.said)
        words = () if text is None else self._tokenizer.reconstruct(text.ids)
        return text_piece(self._tokenizer.block(words))

    def _generation(self, target: int, text: Text | None) -> Spans:
        ids = () if text is None else text.ids
        return [(CAUSAL, [text_piece([self._marks.t2i, *self._tokenizer.block(ids)])]), self._target(target)]

    def _reconstruction_of_vectors(self, vectors: int, target: int, text: Text | None) -> Spans:
        marks, prompt = self._marks, self._prompt(text)
        if prompt.length + 3 > PROMPT_IDS:
            raise BadRecord("prompt too long to be drawn from", f"{prompt.length} tokens, at most {PROMPT_IDS - 3}")
        return [
            (LEAD, [text_piece([marks.mmu, marks.soi])]),
            (FULL, [Piece(VECTORS, vectors)]),
            (CAUSAL, [text_piece([marks.eoi]), prompt, self._start(vectors)]),
            (FULL, [Piece(TARGET, target)]),
        ]

    def _reconstruction_of_codes(self, given: int, target: int, text: Text | None) -> Spans:
        return [
            (CAUSAL, [text_piece([self._marks.mmu])]),
            (FULL, self._picture(Piece(GIVEN, given))),
            (CAUSAL, [self._prompt(text)]),
            self._target(target),
        ]

    def _understanding(self, given: int | None, text: Text | None) -> Spans:
        marks, said = self._marks, () if text is None else text.said
        block = text_piece(() if text is None else text.ids, said)
        if given is None:
            return [(CAUSAL, [block])]
        if self._vectors is None:
            return [(FULL, [text_piece([marks.mmu]), *self._picture(Piece(GIVEN, given))]), (CAUSAL, [block])]
        return [
            (LEAD, [text_piece([marks.mmu, *self._tokenizer.system(), marks.soi])]),
            (FULL, [Piece(VECTORS, self._vectors)]),
            (CAUSAL, [text_piece([marks.eoi]), block]),
        ]
