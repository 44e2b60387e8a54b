"""Harmon's words: Qwen2.5's chat template around a request, a caption or a conversation, and where a picture stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reca_fast.models.parts.qwen_tokenizer import read_qwen_tokenizer
from reca_fast.sample import Text, Turn

from .layout import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START, END = "<|im_start|>", "<|im_end|>"
QUESTION = "Describe this picture in detail."
"""What is asked for a caption that nobody asked for."""
LONGEST_PROMPT, LONGEST_CONVERSATION = 128, 1472
"""The authors cut off prompts and conversations behind so many tokens, those of the picture not counted."""

PUBLISHED_WORDS = {
    "user\n": (872, 198),
    "user\n\n": (872, 271),
    "assistant\n": (77091, 198),
    "\n": (198,),
    "Generate an image.": (31115, 458, 2168, 13),
    "Generate an image:": (31115, 458, 2168, 25),
}
"""The pieces of the template, in Qwen2.5's ids."""


@dataclass(frozen=True)
class HarmonTokenizer:
    """Text to token ids, and the template around it.

    `start` and `end` open and close every turn; `words` are the ids of the keys of PUBLISHED_WORDS.
    """

    start: int
    end: int
    words: dict[str, tuple[int, ...]]
    qwen: "PreTrainedTokenizerBase | None"  # None where only the template is known, as of a model without files

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Where the text spells a marker, it becomes ordinary tokens.

        Raises:
            ValueError: only the template is known.
        """
        if self.qwen is None:
            raise ValueError("texts cannot be tokenized without the files of a tokenizer")
        ids: list[int] = self.qwen.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    @property
    def _closing(self) -> tuple[int, ...]:
        """The end of the user's turn and the beginning of the answer."""
        return (self.end, *self.words["\n"], self.start, *self.words["assistant\n"])

    def prompt(self, text: Text | None, *, seen: bool, training: bool = True) -> Prompt:
        """What stands around the place of a condition.

        Args:
            text: a request, a caption, or what `converse` made; None for the words that guidance compares with.
            seen: whether there is a condition; without one the text is the caption of a picture to be drawn.
            training: the authors put a line break between the condition and a request when they train, and not when
                they draw; and it stands before the condition, for the condition goes behind the third token.
        """
        opening = (self.start, *self.words["user\n"])
        if text is not None and text.supervised:
            after = text.ids[: LONGEST_CONVERSATION - len(opening)]
            said = ((first, min(stop, len(after))) for first, stop in text.said if first < len(after))
            return Prompt(opening, after, tuple(said))
        if text is None:
            after = (*self.words["Generate an image."], *self._closing)
        elif seen:
            after = (*text.ids, *self._closing)
            if training:
                opening = (self.start, *self.words["user\n\n"])
        else:
            after = (*self._drawn(text.ids), *self._closing)
        return Prompt(opening, after[: LONGEST_PROMPT - len(opening)])

    def _drawn(self, caption: Sequence[int]) -> Sequence[int]:
        """The request to draw a caption. A caption's first word has another token behind a blank."""
        if self.qwen is None:
            return (*self.words["Generate an image:"], *caption)
        said = str(self.qwen.decode(list(caption), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return self.encode(f"Generate an image: {said}")

    def converse(self, turns: Sequence[Turn]) -> Text:
        """A conversation about a picture, as it goes on behind the picture. Answers are learnt, with their end marker.

        Raises:
            ValueError: only the template is known.
        """
        ids: list[int] = []
        said: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if number:
                ids += [*self.words["\n"], self.start, *self.words["user\n"]]
            question = turn.question or QUESTION
            ids += self.encode(question if number else f"\n{question}")
            ids += self._closing
            answer = [*self.encode(turn.answer), self.end]
            said.append((len(ids), len(ids) + len(answer)))
            ids += answer
        return Text(tuple(ids), tuple(said))


PUBLISHED_TOKENIZER = HarmonTokenizer(151644, 151645, PUBLISHED_WORDS, qwen=None)
"""The template of the checkpoints that the authors published."""


def open_tokenizer(folder: Path, vocab_size: int) -> HarmonTokenizer:
    """The tokenizer of a checkpoint folder: Qwen2.5's files.

    Raises:
        UserError: files or markers are missing or broken, or ids lie beyond the embedding's `vocab_size` rows.
    """
    qwen, markers = read_qwen_tokenizer(folder, (START, END), vocab_size, "vocab_size of config.json")
    plain = HarmonTokenizer(markers[START], markers[END], {}, qwen)
    words = {word: tuple(plain.encode(word)) for word in PUBLISHED_WORDS}
    return HarmonTokenizer(markers[START], markers[END], words, qwen)
