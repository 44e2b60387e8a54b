"""BAGEL's tokenizer: Qwen's byte-level BPE and the four marker tokens that open and close the splits of a sample."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reca_fast.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
MARKERS = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}
"""Field of `BagelTokenizer` -> the string whose id it holds."""


@dataclass(frozen=True)
class BagelTokenizer:
    """Text to ids and back; `bos` and `eos` enclose a text split, the other two an image split."""

    bos: int
    eos: int
    start_of_image: int
    end_of_image: int
    backend: "PreTrainedTokenizerBase"

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no marker is added, and one that the text spells stays text."""
        return self.backend.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: list[int]) -> str:
        """The text of these ids, markers included."""
        return str(self.backend.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def load_tokenizer(folder: str | Path) -> BagelTokenizer:
    """Load from tokenizer.json, or from vocab.json, merges.txt and tokenizer_config.json.

    Nothing is downloaded, and no token is ever added: the embedding table is larger than the vocabulary, and a missing
    marker means that the files belong to another model. Raises UserError when files or markers are missing or broken.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"No tokenizer in {folder}: {' and '.join(missing)} missing; "
                "copy tokenizer.json, or vocab.json, merges.txt and tokenizer_config.json, from the public checkpoint."
            )
    # Here, not above: the import takes seconds.
    from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]

    # The class is named, not looked up: AutoTokenizer would want to know the model type that config.json declares.
    try:
        backend = Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # broken files make `tokenizers` raise Exception itself, others much besides
        raise UserError(
            f"The tokenizer in {folder} cannot be read ({' '.join(str(error).split())}); copy its files anew from the "
            "public checkpoint."
        ) from None
    vocabulary = backend.get_vocab()
    absent = [marker for marker in MARKERS.values() if marker not in vocabulary]
    if absent:
        raise UserError(
            f"The tokenizer in {folder} has no {', '.join(absent)}; these are defined in tokenizer.json or "
            "tokenizer_config.json of the public checkpoint; copy both."
        )
    return BagelTokenizer(**{name: vocabulary[marker] for name, marker in MARKERS.items()}, backend=backend)
