"""BAGEL's tokenizer: Qwen's byte-level BPE and the four marker tokens that open and close the splits of a sample."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reca_fast.models.parts.qwen_tokenizer import read_qwen_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKERS = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}
"""Field of `BagelTokenizer` -> the string whose id it holds."""


@dataclass(frozen=True)
class BagelTokenizer:
    """Text to token ids and back, and the ids of the markers.

    `bos` and `eos` stand before and after each text of a sample, `start_of_image` and `end_of_image` before and after
    each picture.
    """

    bos: int
    eos: int
    start_of_image: int
    end_of_image: int
    qwen: "PreTrainedTokenizerBase | None"  # None where only the markers are known, as of a model without files

    def encode(self, text: str) -> list[int]:
        """The ids of a text. No marker is added, and where the text spells a marker it becomes ordinary tokens.

        Raises:
            ValueError: only the markers are known.
        """
        if self.qwen is None:
            raise ValueError("texts cannot be tokenized without the files of a tokenizer")
        ids: list[int] = self.qwen.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of these ids, markers included."""
        if self.qwen is None:
            raise ValueError("ids cannot be read without the files of a tokenizer")
        return str(self.qwen.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


PUBLISHED_MARKERS = BagelTokenizer(bos=151644, eos=151645, start_of_image=151652, end_of_image=151653, qwen=None)
"""The markers of the checkpoint that the authors published."""


def open_tokenizer(folder: str | Path, vocab_size: int | None = None) -> BagelTokenizer:
    """Read the tokenizer of a checkpoint folder (see `read_qwen_tokenizer`).

    Args:
        folder: the checkpoint folder.
        vocab_size: rows of the embedding table, which has a row for each id; None leaves that unchecked.

    Raises:
        UserError: files or markers are missing or broken, or ids lie beyond the table.
    """
    qwen, ids = read_qwen_tokenizer(Path(folder), tuple(MARKERS.values()), vocab_size)
    return BagelTokenizer(**{name: ids[marker] for name, marker in MARKERS.items()}, qwen=qwen)
