"""A VLM's own wording of a conversation about a picture: its chat template, and which tokens are the answers'.

The whole conversation is tokenized at once, as in generation: pieces of it would come out as other tokens. The answers
are found again by the places of their letters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError
from reca_fast.models.files.folder import check_links, read_object
from reca_fast.models.parts.lean_import import lean_import
from reca_fast.sample import Text, Turn

from .family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = "Describe the image."
"""What is asked where a caption came without a question."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json"),
)
_SLOT = re.compile("\x02(\\d+)\x03")
"""What stands for the texts while the template is rendered: letters that no template has or changes."""


@dataclass(frozen=True)
class Chat:
    """The tokenizer and the chat template of a checkpoint folder."""

    tokenizer: "PreTrainedTokenizerBase"
    template: str
    image: str  # the token that stands for a picture
    image_id: int
    marks: tuple[tuple[int, ...], tuple[int, ...]]  # tokens around a picture that the template does not have

    def encode(self, text: str) -> list[int]:
        """The ids of a text. No marker is added, and where the text spells a marker it becomes ordinary tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def head(self) -> tuple[int, ...]:
        """A conversation up to its picture, that one's token included."""
        ids = self.converse((Turn("", "."),)).ids
        return ids[: ids.index(self.image_id) + 1]

    def converse(self, turns: Sequence[Turn]) -> Text:
        """The ids of a conversation, with one token for the picture, and what of it the model says.

        An answer is said with the token that ends it: the one that the template puts behind an answer, or the
        tokenizer's end of text where it puts none. What would come after the last one is left out.

        Raises:
            BadRecord: a text is empty or spells one of the tokenizer's special tokens.
        """
        texts = [text.strip() for turn in turns for text in (turn.question, turn.answer)]
        texts = [text or (QUESTION if number == 0 else "") for number, text in enumerate(texts)]
        if not texts or not all(texts):
            raise BadRecord("a conversation with an empty text")
        for special in self._specials():
            if any(special in text for text in texts):
                raise BadRecord(f"a text that spells the token {special}")
        whole, answers = self._filled_in(texts)
        bos = self.tokenizer.bos_token
        encoded: Any = self.tokenizer(
            whole,
            add_special_tokens=not (bos and whole.startswith(bos)),
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        ids = encoded["input_ids"]
        said: list[tuple[int, int]] = []
        for start, stop in answers:
            tokens = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < stop and b > start]
            said.append((tokens[0], tokens[-1] + 1))
        if ids.count(self.image_id) != 1:
            raise BadRecord("a conversation that the chat template gives no place for one picture")
        return Text(tuple(ids[: said[-1][1]]), tuple(said))

    def _specials(self) -> list[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted({token.content for token in added if token.special} | {self.image}, key=len, reverse=True)

    def _render(self, count: int) -> str:
        """The conversation with slots for its texts. Templates of VLMs take a list of contents, others take text."""
        slots = [f"\x02{number}\x03" for number in range(count)]
        roles = ("user", "assistant")
        parts = [[{"type": "text", "text": slot}] for slot in slots]
        listed: list[dict[str, Any]] = [{"role": roles[i % 2], "content": part} for i, part in enumerate(parts)]
        listed[0]["content"] = [{"type": "image"}, *parts[0]]
        plain = [{"role": roles[i % 2], "content": slot} for i, slot in enumerate(slots)]
        plain[0]["content"] = f"{self.image}\n{slots[0]}"
        for messages in (listed, plain):
            text = str(self.tokenizer.apply_chat_template(messages, chat_template=self.template, tokenize=False))
            if text.count(self.image) == 1 and [int(n) for n in _SLOT.findall(text)] == list(range(count)):
                return text
        raise UserError(
            "The chat template of this checkpoint does not render a picture and the texts after it in their order; "
            "take the template of the public checkpoint."
        )

    def _filled_in(self, texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """The whole conversation, and where in it the answers are, their end tokens included."""
        pieces = _SLOT.split(self._render(len(texts)))
        whole, answers = pieces[0], []
        for number, text in enumerate(texts):
            after, start = pieces[2 * number + 2], len(whole)
            whole += text
            if number % 2:
                end = next((token for token in self._specials() if after.startswith(token)), None)
                if end is None:
                    end = str(self.tokenizer.eos_token or "")
                    after = end + after.lstrip(" ")
                answers.append((start, len(whole) + len(end)))
            whole += after
        return whole, answers


def open_chat(folder: Path, family: Family, vocabulary: int) -> Chat:
    """Read the tokenizer and the chat template of a checkpoint folder. Nothing is downloaded, no code of it is run.

    Args:
        vocabulary: rows of the embedding table.

    Raises:
        UserError: files are missing or damaged, or ids lie beyond the table.
    """
    check_links(folder, TOKENIZER_FILES)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder / 'tokenizer.json'} is missing; copy the tokenizer's files from the public checkpoint."
        )
    with lean_import():
        from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # broken files make `tokenizers` raise Exception itself, others much besides
        raise UserError(
            f"The tokenizer in {folder} cannot be read ({' '.join(str(error).split())[:200]}); copy its files anew "
            "from the public checkpoint."
        ) from None
    known = tokenizer.get_vocab()
    if max(known.values(), default=0) >= vocabulary:
        raise UserError(
            f"The tokenizer in {folder} has ids up to {max(known.values())}, the embedding has {vocabulary} rows; take "
            "the tokenizer, config.json and the weights from one checkpoint."
        )
    image = tokenizer.convert_ids_to_tokens(family.image_token)
    if image is None:
        raise UserError(f"The tokenizer in {folder} has no token {family.image_token}, config.json's for a picture.")
    absent = [mark for mark in family.MARKS if mark and mark not in known]
    if absent:
        raise UserError(f"The tokenizer in {folder} has no {', '.join(absent)}; copy it from the public checkpoint.")
    before, after = (tuple(known[mark] for mark in (each,) if mark) for each in family.MARKS)
    return Chat(tokenizer, _template(folder, tokenizer), str(image), family.image_token, (before, after))


def _template(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The chat template, from the file of its own that processors have or from the tokenizer's."""
    jinja, wrapped = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    found = read_object(wrapped).get("chat_template") if wrapped.is_file() else tokenizer.chat_template
    if not isinstance(found, str):
        raise UserError(
            f"{folder} has no chat template; copy chat_template.jinja or chat_template.json from the public checkpoint."
        )
    return found
