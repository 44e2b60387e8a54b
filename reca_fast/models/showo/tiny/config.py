"""Sizes of the tiny checkpoint, and the JSON files that state them."""

from dataclasses import dataclass
from typing import Any

from reca_fast.models.parts.clip_vision_config import ClipVisionConfig
from reca_fast.models.parts.magvit_config import MagvitConfig, MagvitHalf
from reca_fast.models.showo.vocabulary import MARKS

TINY_MAGVIT = MagvitConfig(
    code_bits=8,
    width=32,
    encoder=MagvitHalf((32, 32, 32, 64), (1, 1, 1, 1)),
    decoder=MagvitHalf((32, 32, 32, 64), (1, 1, 1, 1)),
)
"""256 codes, one for 8 x 8 pixels."""
TINY_CLIP = ClipVisionConfig(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=56,
    patch_size=14,
)
"""16 vectors of a picture."""


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the tiny checkpoint. Its pictures have 64 x 64 pixels, that is 8 x 8 codes."""

    clip: bool = False
    """Whether conditions are seen through CLIP; otherwise their codes are read."""
    hidden_size: int = 96
    intermediate_size: int = 192
    layers: int = 3
    heads: int = 4
    text_vocab: int = 512
    """Entries of the byte-level BPE, <|endoftext|> among them."""
    num_vq_tokens: int = 64
    magvit: MagvitConfig = TINY_MAGVIT
    tower: ClipVisionConfig = TINY_CLIP

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table and of the head."""
        return self.text_vocab + len(MARKS) + self.magvit.codebook_size + 1

    def config(self) -> dict[str, Any]:
        """Content of config.json: the public keys, and the sizes of the language model, which the public file lacks."""
        return {
            "_class_name": "Showo",
            "codebook_size": self.magvit.codebook_size,
            "llm_vocab_size": self.text_vocab,
            "mask_token_id": self.vocab_size - 1,
            "num_vq_tokens": self.num_vq_tokens,
            "vocab_size": self.vocab_size,
            "w_clip_vit": self.clip,
            "phi": {
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
            },
        }

    def clip_config(self) -> dict[str, Any]:
        """Content of clip/config.json."""
        tower = self.tower
        sizes = {
            "hidden_size": tower.hidden_size,
            "intermediate_size": tower.intermediate_size,
            "num_hidden_layers": tower.num_hidden_layers,
            "num_attention_heads": tower.num_attention_heads,
            "image_size": tower.image_size,
            "patch_size": tower.patch_size,
            "hidden_act": tower.hidden_act,
            "layer_norm_eps": tower.layer_norm_eps,
        }
        return {"model_type": "clip", "vision_config": sizes}
