"""A small tokenizer of Qwen's kind, trained on the prompt templates or on other texts, in Qwen's files."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from reca_fast.data.templates import templates
from reca_fast.models.bagel.tokenizer import MARKERS
from reca_fast.models.files.folder import write_object

END_OF_TEXT = "<|endoftext|>"


def write_tokenizer(
    folder: Path,
    vocabulary_size: int,
    markers: Sequence[str] = tuple(MARKERS.values()),
    texts: Iterable[str] | None = None,
) -> None:
    """Train a byte-level BPE and write it twice: as tokenizer.json, and as the three older files beside it.

    Args:
        folder: which exists.
        vocabulary_size: entries, without the special tokens.
        markers: the special tokens besides END_OF_TEXT.
        texts: that it is trained on, the templates by default.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    # Contractions, words with one leading mark, single digits, punctuation, white space: Qwen's pieces.
    pieces = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(templates() if texts is None else texts, trainer)
    special = [END_OF_TEXT, *markers]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in special}
    write_object(folder / "vocab.json", dict(sorted(vocabulary.items(), key=lambda entry: entry[1])))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "add_prefix_space": False}
    none = {"bos_token": None, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "unk_token": None}
    write_object(folder / "tokenizer_config.json", settings | none)
