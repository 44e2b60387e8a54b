"""Sizes of a Show-o checkpoint, read from its config.json. The file says nothing of the language model, which is
Phi-1.5 in all that the authors published: its sizes are the defaults here, and an object `phi` in the file may state
others.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from reca_fast.errors import UserError
from reca_fast.models.files.folder import REMEDY, check_links, read_object
from reca_fast.models.parts.ranges import Epsilon, Heads, Layers, Width
from reca_fast.schema import Fraction, Range, from_dict, shown

CONFIG_FILE = "config.json"
CLASS = "Showo"
"""What config.json calls the authors' class."""
SPECIAL = 10
"""Tokens between those of the text and the codes of pictures: [PAD] and nine marks."""

Ids = Annotated[int, Range(1, 2**22)]


@dataclass(frozen=True)
class PhiConfig:
    """Sizes of the language model, under the names of Phi's own config.json.

    Raises:
        ValueError: the sizes contradict each other, or describe another model than Show-o's.
    """

    hidden_size: Width = 2048
    intermediate_size: Width = 8192
    num_hidden_layers: Layers = 24
    num_attention_heads: Heads = 32
    partial_rotary_factor: Fraction = 0.5
    """The part of each head, from its beginning, that is turned by position."""
    rope_theta: Annotated[float, Range(above=0, at_most=1e12)] = 10_000.0
    layer_norm_eps: Epsilon = 1e-5
    hidden_act: str = "gelu_new"
    qk_layernorm: bool = True
    tie_word_embeddings: bool = False
    num_key_value_heads: int | None = None

    @property
    def head_dim(self) -> int:
        """Numbers in one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Numbers of a head that are turned by position."""
        return int(self.partial_rotary_factor * self.head_dim)

    def __post_init__(self) -> None:
        if (
            self.hidden_act not in ("gelu_new", "gelu_pytorch_tanh")
            or self.tie_word_embeddings
            or not self.qk_layernorm
        ):
            raise ValueError(
                "it describes another model: Show-o has hidden_act=gelu_new, qk_layernorm=true, "
                f"tie_word_embeddings=false, not {shown(self.hidden_act)}, {self.qk_layernorm}, "
                f"{self.tie_word_embeddings}"
            )
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}; every head of Show-o has its own keys"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.rotary_dim % 2 or not self.rotary_dim:
            raise ValueError(
                f"partial_rotary_factor {self.partial_rotary_factor} turns {self.rotary_dim} numbers of a head"
            )


@dataclass(frozen=True)
class ShowoConfig:
    """Sizes of the network. Fields as in config.json, where further ones are allowed.

    Token ids are [text | [PAD] and nine marks | codes of pictures | the mask].

    Raises:
        ValueError: the sizes contradict each other.
    """

    vocab_size: Ids
    llm_vocab_size: Ids
    codebook_size: Ids
    num_vq_tokens: Annotated[int, Range(1, 2**16)]
    """Codes of a picture at the resolution that the checkpoint was made for; others can be trained as well."""
    w_clip_vit: bool = False
    """Whether the checkpoint sees pictures through CLIP; otherwise it reads their codes."""
    mask_token_id: Ids | None = None
    phi: PhiConfig = field(default_factory=PhiConfig)

    def __post_init__(self) -> None:
        wanted = self.llm_vocab_size + SPECIAL + self.codebook_size + 1
        if self.vocab_size != wanted:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but llm_vocab_size {self.llm_vocab_size}, {SPECIAL} marks, "
                f"codebook_size {self.codebook_size} and the mask make {wanted}"
            )
        if self.mask_token_id not in (None, self.vocab_size - 1):
            raise ValueError(f"mask_token_id is {self.mask_token_id}, not the last id, {self.vocab_size - 1}")
        if self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size is {self.codebook_size}, no power of two")

    @property
    def first_code(self) -> int:
        """Token id of code 0; the mask follows the last code."""
        return self.llm_vocab_size + SPECIAL

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "ShowoConfig":
        """From the object in a config.json; `where` names it in messages.

        Raises:
            UserError: a value is missing or impossible, or it describes another model.
        """
        if (name := values.get("_class_name", CLASS)) != CLASS:
            raise UserError(f"{where} describes a {shown(name)}, not a {CLASS}; take the config.json of a Show-o.")
        return from_dict(cls, values, where, remedy=REMEDY)

    @classmethod
    def from_folder(cls, folder: Path) -> "ShowoConfig":
        """From a checkpoint folder.

        Raises:
            UserError: the folder or the file is missing, or a value in it is impossible.
        """
        if not folder.is_dir():
            raise UserError(f"The checkpoint folder {folder} does not exist; set model.path to a Show-o folder.")
        check_links(folder, (CONFIG_FILE,))
        return cls.from_dict(read_object(folder / CONFIG_FILE), str(folder / CONFIG_FILE))


def published_config(codes: int, *, clip: bool) -> ShowoConfig:
    """The sizes of a checkpoint that the authors published, for pictures of so many codes."""
    return ShowoConfig(vocab_size=58498, llm_vocab_size=50295, codebook_size=8192, num_vq_tokens=codes, w_clip_vit=clip)


PUBLISHED = {
    "Show-o-256": published_config(256, clip=False),
    "Show-o-512": published_config(1024, clip=False),
    "Show-o-CLIP-256": published_config(256, clip=True),
    "Show-o-CLIP-512": published_config(1024, clip=True),
}
"""Name -> sizes of the checkpoints that the authors published: show-o, show-o-512x512, show-o-w-clip-vit and
show-o-w-clip-vit-512x512.
"""
