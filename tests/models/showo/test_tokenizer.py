"""Texts to ids and back, the ids of the marks, and the authors' wording of prompts, captions and conversations."""

import json
import shutil
from pathlib import Path

import pytest

from reca_fast.data.records import BadRecord
from reca_fast.data.templates import templates
from reca_fast.errors import UserError
from reca_fast.models.showo.tiny.tokenizer import write_tokenizer
from reca_fast.models.showo.tokenizer import (
    CAPTION_QUESTION,
    PUBLISHED_TOKENIZER,
    SYSTEM_IDS,
    TOKENIZER_FILES,
    ShowoTokenizer,
    open_tokenizer,
)
from reca_fast.models.showo.vocabulary import PUBLISHED_VOCABULARY, Vocabulary
from reca_fast.sample import Turn

IDS, CODES = 512, 64
EOT = 508  # behind it are three runs of spaces


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, IDS)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ShowoTokenizer:
    return open_tokenizer(folder, IDS, CODES)


def test_the_published_vocabulary_is_laid_out_as_the_authors_say() -> None:
    v = PUBLISHED_VOCABULARY
    assert (v.bos, v.eos, v.pad, v.soi, v.eoi, v.t2i, v.mmu) == (50256, 50256, 50295, 50296, 50297, 50300, 50301)
    assert (v.first_code, v.mask, v.size) == (50305, 58497, 58498)


def test_texts_come_back_as_they_were(tokenizer) -> None:
    for text in (*templates()[:40], "Two  spaces,   three    and four.", "ünï — 漢字 \n\t"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocabulary == Vocabulary(IDS, CODES, EOT)


def test_a_text_cannot_spell_the_end_mark(tokenizer) -> None:
    assert EOT not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>b")) == "a<|endoftext|>b"


def test_the_older_files_give_the_same_ids(tokenizer, folder, tmp_path) -> None:
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        shutil.copy(folder / name, tmp_path)
    older = open_tokenizer(tmp_path, IDS, CODES)
    for text in (*templates()[:40], "Two  spaces,   three.", "a<|endoftext|>b"):
        assert older.encode(text) == tokenizer.encode(text)


def test_a_block_stands_between_the_marks(tokenizer) -> None:
    assert tokenizer.block([1, 2]) == [EOT, 1, 2, EOT]
    assert tokenizer.block([EOT, 2]) == [EOT, 2, EOT]  # no second opening mark
    assert tokenizer.block([]) == [EOT, EOT]


def test_a_template_is_worded_as_a_question(tokenizer) -> None:
    template = "Describe the picture."
    ids = tokenizer.reconstruct(tokenizer.encode(template))
    assert list(ids) == tokenizer.encode("USER: \n Describe the picture. ASSISTANT:")


def test_a_conversation_is_learned_where_the_assistant_speaks(tokenizer) -> None:
    text = tokenizer.converse([Turn(" What is it? ", "A cat."), Turn("Why?", "It meows.\n")])
    words = "USER: What is it? ASSISTANT: A cat.<|endoftext|>USER: Why? ASSISTANT: It meows.<|endoftext|>"
    assert tokenizer.decode(text.ids) == words
    said = [tokenizer.decode(text.ids[start:stop]) for start, stop in text.said]
    assert said == [" A cat.<|endoftext|>", " It meows.<|endoftext|>"]


def test_of_a_caption_every_token_is_learned(tokenizer) -> None:
    text = tokenizer.converse([Turn("", "A cat. ")])
    words = f"USER: \n{CAPTION_QUESTION} ASSISTANT: A cat."
    assert tokenizer.decode(text.ids) == f"<|endoftext|>{words}<|endoftext|>"
    assert text.said == ((0, len(text.ids)),) and text.ids[0] == text.ids[-1] == EOT


@pytest.mark.parametrize("turns", [[], [Turn("What is it?", " ")], [Turn("", "")]])
def test_a_conversation_without_an_answer_is_refused(turns, tokenizer) -> None:
    with pytest.raises(BadRecord, match="without an answer"):
        tokenizer.converse(turns)


def test_without_files_packs_can_be_planned_but_no_text_read() -> None:
    assert len(PUBLISHED_TOKENIZER.reconstruct(range(20))) == 28 and len(PUBLISHED_TOKENIZER.system()) == SYSTEM_IDS
    with pytest.raises(ValueError, match="without the files"):
        PUBLISHED_TOKENIZER.encode("a")
    with pytest.raises(ValueError, match="without the files"):
        PUBLISHED_TOKENIZER.decode([1])


def _damage(folder: Path, fault: str) -> None:
    if fault == "absent":
        for name in TOKENIZER_FILES:
            (folder / name).unlink()
    if fault == "no merges":
        (folder / "tokenizer.json").unlink()
        (folder / "merges.txt").unlink()
    if fault == "broken":
        (folder / "tokenizer.json").write_text("{")
    if fault == "no mark":
        values = json.loads((folder / "tokenizer.json").read_text().replace("<|endoftext|>", "<|end|>"))
        (folder / "tokenizer.json").write_text(json.dumps(values))
    if fault == "a gap":
        (folder / "tokenizer.json").unlink()
        (folder / "added_tokens.json").write_text(json.dumps({"  ": 600}))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("absent", r"No tokenizer in .*: vocab\.json and merges\.txt missing"),
        ("no merges", r"merges\.txt missing; copy tokenizer\.json, or"),
        ("broken", "cannot be read"),
        ("no mark", r"has 512 ids and no <\|endoftext\|>"),
        ("a gap", "leaves out ids before 600"),
    ],
)
def test_files_that_cannot_serve(fault, message, folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    _damage(tmp_path / "copy", fault)
    with pytest.raises(UserError, match=message):
        open_tokenizer(tmp_path / "copy", IDS, CODES)


def test_a_tokenizer_of_another_size_is_refused(folder) -> None:
    with pytest.raises(UserError, match=r"has 512 ids, config\.json states 50295"):
        open_tokenizer(folder, 50295, CODES)
