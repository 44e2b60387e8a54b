"""A small tokenizer with the markers and the chat format of each family, trained on the prompt templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from reca_fast.data.templates import templates
from reca_fast.models.files.folder import write_object

_OF_CONTENTS = "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
_END = "{% endfor %}{% endif %}"


class Markers(NamedTuple):
    """The special tokens of a family, and how it writes a conversation."""

    special: tuple[str, ...]
    image: str
    bos: str | None
    eos: str
    template: str


def _chat_ml(image: str) -> str:
    """Qwen's and InternVL's format: each message between <|im_start|> and <|im_end|>."""
    said = f"{_OF_CONTENTS}{{% if c.type == 'image' %}}{image}{{% else %}}{{{{ c.text }}}}{{% endif %}}{_END}"
    return "{% for m in messages %}<|im_start|>{{ m.role }}\n" + said + "<|im_end|>\n{% endfor %}"


MARKERS: Mapping[str, Markers] = {
    "llava": Markers(
        ("<unk>", "<s>", "</s>", "<image>"),
        *("<image>", "<s>", "</s>"),
        "{% for m in messages %}{{ m.role.upper() }}: "
        + _OF_CONTENTS
        + "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }} {% endif %}"
        + _END
        + "{% endfor %}",
    ),
    "qwen": Markers(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
        *("<|image_pad|>", None, "<|im_end|>"),
        _chat_ml("<|vision_start|><|image_pad|><|vision_end|>"),
    ),
    "internvl": Markers(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"),
        *("<IMG_CONTEXT>", None, "<|im_end|>"),
        _chat_ml("<IMG_CONTEXT>\n"),
    ),
}
"""Flavour -> markers."""


def write_tokenizer(folder: Path, flavour: str, vocabulary: int) -> dict[str, int]:
    """Train a byte-level BPE and write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Args:
        folder: which exists.
        vocabulary: entries, without the special tokens, which come after them.

    Returns:
        Special token -> id.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    markers = MARKERS[flavour]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(templates(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in markers.special])
    known: dict[str, int] = tokenizer.get_vocab()
    ids = {token: known[token] for token in markers.special}
    if markers.bos is not None:  # as Llama's tokenizer begins each text
        bos = markers.bos
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, ids[bos])])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(markers.template, encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": markers.bos, "eos_token": markers.eos}
    write_object(folder / "tokenizer_config.json", settings | {"pad_token": markers.eos, "unk_token": None})
    return ids
