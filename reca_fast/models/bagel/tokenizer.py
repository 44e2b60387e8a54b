"""BAGEL's tokenizer: Qwen's byte-level BPE and the four marker tokens that open and close the splits of a sample."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca_fast.errors import UserError
from reca_fast.models.files.folder import check_links, read_object
from reca_fast.schema import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
IDS: dict[str, Callable[[dict[str, Any]], Iterable[Any]]] = {
    "tokenizer.json": lambda file: [*file["model"]["vocab"].values(), *(token["id"] for token in file["added_tokens"])],
    "vocab.json": lambda file: file.values(),
    "tokenizer_config.json": lambda file: file.get("added_tokens_decoder", {}).keys(),
    "added_tokens.json": lambda file: file.values(),
}
"""File of a tokenizer -> all token ids that it states."""
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
    """Read the tokenizer of a checkpoint folder: tokenizer.json, or vocab.json, merges.txt and tokenizer_config.json.

    Nothing is downloaded, and no token is ever added: a missing marker means that the files belong to another model.

    Args:
        folder: the checkpoint folder.
        vocab_size: rows of the embedding table, which has a row for each id; None leaves that unchecked.

    Raises:
        UserError: files or markers are missing or broken, or ids lie beyond the table.
    """
    folder = Path(folder)
    check_links(folder, TOKENIZER_FILES)
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
        qwen = Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # broken files make `tokenizers` raise Exception itself, others much besides
        raise UserError(
            f"The tokenizer in {folder} cannot be read ({' '.join(str(error).split())}); copy its files anew from the "
            "public checkpoint."
        ) from None
    vocabulary = qwen.get_vocab()
    if vocab_size is not None:
        for source, largest in {folder: max(vocabulary.values(), default=0), **_largest_ids(folder)}.items():
            if largest >= vocab_size:
                raise UserError(
                    f"The tokenizer in {source} has ids up to {shown(largest)}, the embedding has {vocab_size} rows "
                    "(vocab_size of llm_config.json); take the tokenizer, llm_config.json and the weights from one "
                    "checkpoint."
                )
    absent = [marker for marker in MARKERS.values() if marker not in vocabulary]
    if absent:
        raise UserError(
            f"The tokenizer in {folder} has no {', '.join(absent)}; these are defined in tokenizer.json or "
            "tokenizer_config.json of the public checkpoint; copy both."
        )
    return BagelTokenizer(**{name: vocabulary[marker] for name, marker in MARKERS.items()}, qwen=qwen)


def _largest_ids(folder: Path) -> dict[Path, int]:
    """File -> the largest id in it, of every file that states ids.

    All of them count: the authors' code uses another tokenizer class, which reads other files of the folder.
    """
    largest = {}
    for path in (folder / name for name in IDS):
        if path.is_file():
            values = read_object(path)
            try:
                largest[path] = max(map(int, IDS[path.name](values)), default=0)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                raise UserError(f"{path} is not as tokenizers write it; copy it from the public checkpoint.") from None
    return largest
