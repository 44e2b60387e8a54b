"""A small tokenizer of Phi's kind, trained on the prompt templates, in the files that Phi publishes."""

import json
from collections.abc import Iterable
from pathlib import Path

from reca_fast.data.templates import templates
from reca_fast.models.files.folder import write_object
from reca_fast.models.showo.tokenizer import CAPTION_QUESTION, END_OF_TEXT, SYSTEM

RUNS = ("  ", "   ", "    ")
"""Runs of spaces that are tokens of their own, as Phi's tokenizer adds some."""


def write_tokenizer(folder: Path, ids: int, texts: Iterable[str] = ()) -> None:
    """Train a byte-level BPE and write it twice: as tokenizer.json, and as the older files beside it.

    Args:
        folder: which exists.
        ids: how many ids it has in all.
        texts: that it is trained on besides.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ids - 1 - len(RUNS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = f"USER: \n{CAPTION_QUESTION} ASSISTANT: {SYSTEM}"
    tokenizer.train_from_iterator([*templates(), *[words] * 20, *texts], trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in RUNS])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary[END_OF_TEXT] = tokenizer.token_to_id(END_OF_TEXT)
    write_object(folder / "vocab.json", dict(sorted(vocabulary.items(), key=lambda entry: entry[1])))
    write_object(folder / "added_tokens.json", {run: tokenizer.token_to_id(run) for run in RUNS})
    marks = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    write_object(folder / "special_tokens_map.json", marks)
    write_object(folder / "tokenizer_config.json", {"tokenizer_class": "CodeGenTokenizer", **marks})
