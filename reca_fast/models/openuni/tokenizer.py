"""OpenUni's prompts: InternVL3's chat frame around a caption, or around a picture and an instruction.

    t2i    <|im_start|>user\\n Generate an image: CAPTION <|im_end|>\\n <|im_start|>assistant\\n <img>
    reca   <|im_start|>user\\n <img> PICTURE </img> \\n INSTRUCTION <|im_end|>\\n <|im_start|>assistant\\n <img>

PICTURE is one <IMG_CONTEXT> for each of its tokens. The queries follow the last <img>, which means "now draw". Without
a caption, the request is "Generate an image."
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reca_fast.models.parts.qwen_tokenizer import read_qwen_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKERS = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
REQUEST, BARE_REQUEST = "Generate an image: ", "Generate an image."
WORDS = ("user\n", "\n", "assistant\n", REQUEST.rstrip(), BARE_REQUEST)
"""Texts that the frame is made of."""
LONGEST_REQUEST = 128
"""Tokens of a t2i prompt: the authors cut the rest off, the end of the frame included."""


@dataclass(frozen=True)
class OpenUniTokenizer:
    """Text to token ids, and the ids of the frame."""

    markers: Mapping[str, int]  # of MARKERS
    words: Mapping[str, Sequence[int]]  # of WORDS
    qwen: "PreTrainedTokenizerBase | None"  # None where only the frame is known, as of a model without files

    @property
    def picture(self) -> int:
        """The id that stands for a token of a picture."""
        return self.markers["<IMG_CONTEXT>"]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without white space around it. Where it spells a marker, that becomes ordinary tokens.

        Raises:
            ValueError: only the frame is known.
        """
        return self._encode(text.strip())

    def request(self, caption: Sequence[int] | None) -> list[int]:
        """The prompt of t2i.

        Args:
            caption: as `encode` gives it; None asks for any picture.
        """
        return self._framed(self._request(caption))[:LONGEST_REQUEST]

    def about_picture(self, tokens: int, instruction: Sequence[int] | None) -> list[int]:
        """The prompt of reca.

        Args:
            tokens: that the picture takes.
            instruction: as `encode` gives it, or None for none.
        """
        opening, closing = self.markers["<img>"], self.markers["</img>"]
        return self._framed([opening, *[self.picture] * tokens, closing, *self.words["\n"], *(instruction or ())])

    def _framed(self, content: Sequence[int]) -> list[int]:
        start, end = self.markers["<|im_start|>"], self.markers["<|im_end|>"]
        user, newline, assistant = (self.words[word] for word in ("user\n", "\n", "assistant\n"))
        return [start, *user, *content, end, *newline, start, *assistant, self.markers["<img>"]]

    def _request(self, caption: Sequence[int] | None) -> Sequence[int]:
        if caption is None:
            return self.words[BARE_REQUEST]
        if self.qwen is None:
            return [*self.words[REQUEST.rstrip()], *caption]
        # The first word has another id behind a space than alone, so the whole is put into tokens at once.
        spelled = str(self.qwen.decode(list(caption), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return self._encode(REQUEST + spelled)

    def _encode(self, text: str) -> list[int]:
        if self.qwen is None:
            raise ValueError("texts cannot be tokenized without the files of a tokenizer")
        ids: list[int] = self.qwen.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids


PUBLISHED_TOKENS = OpenUniTokenizer(
    markers=dict(zip(MARKERS, (151644, 151645, 151665, 151666, 151667), strict=True)),
    words=dict(
        zip(WORDS, ((872, 198), (198,), (77091, 198), (31115, 458, 2168, 25), (31115, 458, 2168, 13)), strict=True)
    ),
    qwen=None,
)
"""The frame of the checkpoints that the authors published."""


def open_tokenizer(folder: Path, vocab_size: int) -> OpenUniTokenizer:
    """Read the tokenizer of an InternVL3 folder.

    Args:
        vocab_size: rows of the embedding table.

    Raises:
        UserError: files or markers are missing or broken, or ids lie beyond the table.
    """
    qwen, markers = read_qwen_tokenizer(folder, MARKERS, vocab_size, "vocab_size of config.json")
    known = OpenUniTokenizer(markers, {}, qwen)
    return OpenUniTokenizer(markers, {word: known._encode(word) for word in WORDS}, qwen)
