"""Reading Qwen's byte-level BPE from the files of a checkpoint folder, strictly."""

from collections.abc import Callable, Iterable, Sequence
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


def read_qwen_tokenizer(
    folder: Path, markers: Sequence[str], vocab_size: int | None = None, stated: str = "vocab_size of llm_config.json"
) -> tuple["PreTrainedTokenizerBase", dict[str, int]]:
    """Read a tokenizer: tokenizer.json, or vocab.json, merges.txt and tokenizer_config.json.

    Nothing is downloaded, and no token is ever added: a missing marker means that the files belong to another model.

    Args:
        folder: the checkpoint folder.
        markers: tokens that must be there.
        vocab_size: rows of the embedding table, which has a row for each id; None leaves that unchecked.
        stated: where `vocab_size` stands, for messages.

    Returns:
        The tokenizer, and marker -> id.

    Raises:
        UserError: files or markers are missing or broken, or ids lie beyond the table.
    """
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
                    f"({stated}); take the tokenizer, {stated.rpartition(' ')[2]} and the weights from one checkpoint."
                )
    absent = [marker for marker in markers if marker not in vocabulary]
    if absent:
        raise UserError(
            f"The tokenizer in {folder} has no {', '.join(absent)}; these are defined in tokenizer.json or "
            "tokenizer_config.json of the public checkpoint; copy both."
        )
    return qwen, {marker: vocabulary[marker] for marker in markers}


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
