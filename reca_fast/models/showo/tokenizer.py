"""Show-o's tokenizer: Phi's byte-level BPE, the marks of Show-o, and the words in which it is asked for something."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError
from reca_fast.models.files.folder import check_links, read_object
from reca_fast.sample import Text, Turn

from .vocabulary import PUBLISHED_VOCABULARY, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"),
)
END_OF_TEXT = "<|endoftext|>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Vicuna's opening words, which stand before the picture where CLIP sees it."""
SYSTEM_IDS = 28
"""How many ids they are in Phi's tokenizer."""
CAPTION_QUESTION = "Please describe this image in detail."
"""What stands before a caption that answers no question of its own."""
ADDED_WORDS = 8
"""How many ids the words around a template have, about, for packs that are planned without a tokenizer."""


class ShowoTokenizer:
    """Text to token ids and back, and the authors' wording of prompts and conversations.

    Args:
        vocabulary: the ids of the marks.
        bpe: None where only the marks are known, as of a model without files.
    """

    def __init__(self, vocabulary: Vocabulary, bpe: "Tokenizer | None") -> None:
        self.vocabulary = vocabulary
        self._bpe = bpe
        self._reworded = lru_cache(maxsize=4096)(self._reword)
        self._system: tuple[int, ...] = (0,) * SYSTEM_IDS if bpe is None else tuple(self.encode(SYSTEM))

    def encode(self, text: str) -> list[int]:
        """The ids of a text. No mark is added, and where the text spells <|endoftext|> it becomes ordinary tokens.

        Raises:
            ValueError: only the marks are known.
        """
        if self._bpe is None:
            raise ValueError("texts cannot be tokenized without the files of a tokenizer")
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; marks have none."""
        if self._bpe is None:
            raise ValueError("ids cannot be read without the files of a tokenizer")
        text: str = self._bpe.decode([i for i in ids if i < self.vocabulary.text], skip_special_tokens=False)
        return text

    def block(self, ids: Sequence[int]) -> list[int]:
        """A text between the marks that open and close it; one that begins with the opening mark gets no second."""
        bos, eos = self.vocabulary.bos, self.vocabulary.eos
        return [*([] if ids and ids[0] == bos else [bos]), *ids, eos]

    def reconstruct(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids of a template in the words by which a picture is asked for again: `USER: \\n {template} ASSISTANT:`.

        The whole sentence is tokenized anew, for tokens reach over the seams. Without files of a tokenizer the ids hold
        no text, but are about as many.
        """
        return self._reworded(tuple(ids))

    def _reword(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if self._bpe is None:
            return (*ids, *(0,) * ADDED_WORDS)
        return tuple(self.encode(f"USER: \n {self.decode(ids)} ASSISTANT:"))

    def system(self) -> tuple[int, ...]:
        """The ids of Vicuna's opening words."""
        return self._system

    def converse(self, turns: Sequence[Turn]) -> Text:
        """The text that follows a picture to be understood, with its marks.

        A conversation is `USER: {question} ASSISTANT: {answer}`, turn after turn, each closed by the mark of the end;
        answers and these marks are learned. A caption alone is a single turn, asked for by `CAPTION_QUESTION` and
        opened by the mark of the beginning, and all of it is learned, as the authors do it.

        Raises:
            BadRecord: there is no turn, or an answer is empty.
        """
        if not turns or any(not turn.answer.strip() for turn in turns):
            raise BadRecord("a conversation without an answer")
        if len(turns) == 1 and not turns[0].question.strip():
            words = self.encode(f"USER: \n{CAPTION_QUESTION} ASSISTANT: {turns[0].answer.strip()}")
            ids = self.block(words)
            return Text(tuple(ids), said=((0, len(ids)),))
        ids, said = [], []
        for turn in turns:
            question = f"USER: {turn.question.strip()} ASSISTANT: "
            words = self.encode(question + turn.answer.strip())
            # The space at the end of the question becomes part of the answer's first token.
            said.append((len(ids) + len(self.encode(question)) - 1, len(ids) + len(words) + 1))
            ids += [*words, self.vocabulary.eos]
        return Text(tuple(ids), tuple(said))


PUBLISHED_TOKENIZER = ShowoTokenizer(PUBLISHED_VOCABULARY, None)
"""The marks of the checkpoints that the authors published, without their texts."""


def open_tokenizer(folder: Path, text: int, codebook: int) -> ShowoTokenizer:
    """Read Phi's tokenizer from a checkpoint folder: tokenizer.json, or vocab.json, merges.txt and added_tokens.json.
    Nothing is downloaded.

    Args:
        folder: the checkpoint folder.
        text: how many ids of text config.json states (llm_vocab_size).
        codebook: how many codes of pictures it states (codebook_size).

    Raises:
        UserError: files are missing or broken, or the tokenizer has another number of ids.
    """
    check_links(folder, TOKENIZER_FILES)
    vocabulary_files = folder / "vocab.json", folder / "merges.txt"
    if not (folder / "tokenizer.json").is_file() and (absent := [p.name for p in vocabulary_files if not p.is_file()]):
        raise UserError(
            f"No tokenizer in {folder}: {' and '.join(absent)} missing; copy tokenizer.json, or vocab.json, merges.txt "
            "and added_tokens.json, from microsoft/phi-1_5."
        )
    try:
        bpe = _read(folder)
    except UserError:
        raise
    except Exception as error:  # broken files make `tokenizers` raise Exception itself
        raise UserError(
            f"The tokenizer in {folder} cannot be read ({' '.join(str(error).split())[:200]}); copy its files anew "
            "from microsoft/phi-1_5."
        ) from None
    ids = 1 + max(bpe.get_vocab(with_added_tokens=True).values(), default=-1)
    eot = bpe.token_to_id(END_OF_TEXT)
    if ids != text or eot is None:
        lack = "" if eot is not None else f" and no {END_OF_TEXT}"
        raise UserError(
            f"The tokenizer in {folder} has {ids} ids{lack}, config.json states {text} "
            "(llm_vocab_size); copy the tokenizer's files from microsoft/phi-1_5, to which nothing was added."
        )
    return ShowoTokenizer(Vocabulary(text, codebook, eot), bpe)


def _read(folder: Path) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if (folder / "tokenizer.json").is_file():
        bpe = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        bpe = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        bpe.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        for token, number in _added(folder):
            if bpe.add_tokens([AddedToken(token, normalized=True)]) and bpe.token_to_id(token) != number:
                raise UserError(f"{folder / 'added_tokens.json'} leaves out ids before {number}; copy it anew.")
    bpe.encode_special_tokens = True
    return bpe


def _added(folder: Path) -> list[tuple[str, int]]:
    """The tokens of added_tokens.json and their ids, in the order of these."""
    path = folder / "added_tokens.json"
    added: dict[str, Any] = read_object(path) if path.is_file() else {}
    return sorted(added.items(), key=lambda entry: int(entry[1]))
